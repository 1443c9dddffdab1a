"""What Numba has no words for: memory by its address, reading a file, turning bytes by vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

TURNED = 16  # rows and columns that `turn` swaps


@intrinsic
def pointer(typing_context, address):  # type: ignore[no-untyped-def]
    """The uint8 pointer of an int64 address, for `numba.carray`."""

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(types.int64), codegen


@intrinsic
def pread(typing_context, descriptor, target, length, offset):  # type: ignore[no-untyped-def]
    """pread(2): read `length` bytes at `offset` of an open file into `target`, uint8 [N].

    All but `target` are int64. Returns how many bytes were read, or a negative number.
    """

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        descriptor, target, length, offset = arguments
        data = context.make_array(signature.args[1])(context, builder, target).data
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [ir.IntType(32), data.type, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "pread")
        narrow = builder.trunc(descriptor, ir.IntType(32))
        return builder.call(function, [narrow, data, length, offset])

    return types.int64(types.int64, target, types.int64, types.int64), codegen


@intrinsic
def turn(typing_context, source, start, stride, target, target_start, target_stride):  # type: ignore[no-untyped-def]
    """Transpose 16 x 16 bytes: target[target_start + j * target_stride + i] is that of
    source[start + i * stride + j].

    `source` and `target` are uint8 [N], the others int64. Sixteen loads and stores of 16 bytes,
    where compiled loops move byte after byte.
    """
    vector = ir.VectorType(ir.IntType(8), TURNED)

    def codegen(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        def places(array: Any, kind: Any, start: Any, stride: Any) -> list[Any]:
            data = context.make_array(kind)(context, builder, array).data
            steps = [builder.mul(stride, ir.Constant(stride.type, i)) for i in range(TURNED)]
            return [
                builder.bitcast(builder.gep(data, [builder.add(start, step)]), vector.as_pointer())
                for step in steps
            ]

        sources = places(arguments[0], signature.args[0], *arguments[1:3])
        targets = places(arguments[3], signature.args[3], *arguments[4:6])
        rows = [builder.load(place, align=1) for place in sources]
        for _ in range(4):  # each interleaves the rows of the upper half with those of the lower
            rows = [
                builder.shuffle_vector(upper, lower, _interleaving(half))
                for upper, lower in zip(rows[:8], rows[8:], strict=True)
                for half in (0, 1)
            ]
        for row, place in zip(rows, targets, strict=True):
            builder.store(row, place, align=1)
        return context.get_dummy_value()

    integers = (types.int64, types.int64)
    return types.void(source, *integers, target, *integers), codegen


def _interleaving(half: int) -> ir.Constant:
    """The mask that takes bytes by turns from the halves of two vectors."""
    numbers = [8 * half + n // 2 + TURNED * (n % 2) for n in range(TURNED)]
    return ir.Constant(ir.VectorType(ir.IntType(32), TURNED), numbers)
