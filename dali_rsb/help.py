"""The command `dali-rsb help [SECTION | SECTION.KEY]`: a configuration's keys and their meaning.

Without an argument it explains all sections; `optimizer` stands for one of them and `optimizer.lr`
for one key. `--schema` prints the JSON schema that editors use.
"""

from __future__ import annotations

import json
import textwrap

from dali_rsb.config.asking import WIDTH, explain, explain_key, json_schema
from dali_rsb.config.mistakes import suggest
from dali_rsb.config.options import OptionsParser
from dali_rsb.config.recipes import recipes
from dali_rsb.config.sections import all_keys, sections
from dali_rsb.errors import UserError, run_command


def main() -> None:
    parser = OptionsParser("help", __doc__)
    parser.add_argument("topic", nargs="?", metavar="SECTION", help="or SECTION.KEY")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema")
    arguments = parser.parse_args()
    if arguments.schema:
        print(json.dumps(json_schema(), indent=2))
        return
    topic = arguments.topic
    if topic is None:
        print(explain())
        print("\nset a key as section.key=value")
        print(textwrap.fill(f"recipes: {', '.join(recipes())}", WIDTH))
    elif topic in sections():
        print(explain(topic))
    elif topic in all_keys():
        print(explain_key(topic))
    else:
        raise UserError(
            f"no section or key is called {topic}{suggest(topic).rstrip('?')}; the sections are "
            f"{', '.join(sections())}"
        )


if __name__ == "__main__":
    run_command(main)
