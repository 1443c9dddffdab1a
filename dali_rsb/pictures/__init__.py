"""Pictures of a run for people: pages, plots, class activation maps, previews and replays."""
