"""RandAugment on a CPU: `rand_augment_plain`, to the bit, compiled by Numba.

An image is changed where it lies, and nothing here holds the interpreter lock, so that threads
share a batch. Importing this module compiles it, for which the function to call comes last: some
seconds the first time, which Numba's cache saves the next process.
"""

from __future__ import annotations

import numpy as np
from numba import float32, float64, int32, uint8, uint64

from dali_rsb.kernels.numba_compiled import compiled
from dali_rsb.kernels.rand_augment import Branch

_SKIP, _WARP, _EQUALIZE = Branch.SKIP.value, Branch.WARP.value, Branch.EQUALIZE.value
_AUTO_CONTRAST, _SOLARIZE = Branch.AUTO_CONTRAST.value, Branch.SOLARIZE.value
_BRIGHTNESS, _SOLARIZE_ADD = Branch.BRIGHTNESS.value, Branch.SOLARIZE_ADD.value
_CONTRAST, _COLOR, _SHARPNESS = Branch.CONTRAST.value, Branch.COLOR.value, Branch.SHARPNESS.value


@compiled()
def _warp(source, target, matrix, fill):  # type: ignore[no-untyped-def]
    """Bilinear and truncated, row by row: first where each pixel comes from, then the pixels.

    Translations and shears along x, and translations along y, take a row's pixels from neighbours:
    those rows are computed by vector instructions, in half the time.
    """
    height, width, _ = target.shape
    # For each column: place of the upper left of four neighbours in `source`, or -1 for the fill;
    # from there to the right and to the lower neighbour, or 0 at a border; weights of those.
    place, right, down = (
        np.empty(width, np.int32),
        np.empty(width, np.int32),
        np.empty(width, np.int32),
    )
    x_weight, y_weight = np.empty(width), np.empty(width)
    x_of_column, y_of_column = np.empty(width), np.empty(width)
    for column in range(width):
        x_of_column[column] = matrix[0, 0] * (column + 0.5)
        y_of_column[column] = matrix[1, 0] * (column + 0.5)
    for row in range(height):
        # In the order of Pillow's sums, whose rounding decides about single levels.
        x_of_row, y_of_row = matrix[0, 1] * (row + 0.5), matrix[1, 1] * (row + 0.5)
        for column in range(width):
            x = x_of_column[column] + x_of_row + matrix[0, 2]
            y = y_of_column[column] + y_of_row + matrix[1, 2]
            inside = (x >= 0.0) & (x < float64(width)) & (y >= 0.0) & (y < float64(height))
            x = x - 0.5 if inside else 0.0
            y = y - 0.5 if inside else 0.0
            x_floor, y_floor = np.floor(x), np.floor(y)
            x_weight[column], y_weight[column] = x - x_floor, y - y_floor
            left, top = int32(x_floor), int32(y_floor)
            has_right = (left >= int32(0)) & (left < int32(width - 1))
            has_lower = (top >= int32(0)) & (top < int32(height - 1))
            right[column] = int32(3) if has_right else int32(0)
            down[column] = int32(3 * width) if has_lower else int32(0)
            corner = max(top, int32(0)) * int32(3 * width) + max(left, int32(0)) * int32(3)
            place[column] = corner if inside else int32(-1)
        levels = target[row].reshape(3 * width)
        first, last = _neighbouring_columns(place, right, down, x_weight, y_weight)
        if first < last:
            step = int32(3) if x_weight[first] != 0.0 else down[first]
            weight = x_weight if x_weight[first] != 0.0 else y_weight
            length = 3 * (last - first)
            _blend_rows(
                source[place[first] : place[first] + length],
                source[place[first] + step : place[first] + step + length],
                weight[first:last],
                levels[3 * first : 3 * last],
            )
        for begin, end in ((0, first), (last, width)):
            _blend_pixels(source, place, right, down, x_weight, y_weight, fill, levels, begin, end)


@compiled()
def _neighbouring_columns(place, right, down, x_weight, y_weight):  # type: ignore[no-untyped-def]
    """First and end of the columns that come from neighbours and blend two pixels at most.

    Those with a right neighbour in `source`: all of a row's, or none.
    """
    first, last = 0, place.shape[0]
    while first < last and (place[first] < 0 or right[first] == 0):
        first += 1
    while last > first and (place[last - 1] < 0 or right[last - 1] == 0):
        last -= 1
    if first == last:
        return 0, 0
    start, lower = place[first] - int32(3) * int32(first), down[first]
    elsewhere, has_x, has_y = int32(0), int32(0), int32(0)
    for column in range(first, last):
        elsewhere |= int32(place[column] - int32(3) * int32(column) != start)
        elsewhere |= int32(down[column] != lower)
        has_x += int32(x_weight[column] != 0.0)
        has_y += int32(y_weight[column] != 0.0)
    if elsewhere or (has_x and has_y) or (has_x and x_weight[first] == 0.0):
        return 0, 0
    return first, last


@compiled()
def _blend_rows(here, there, weight, target):  # type: ignore[no-untyped-def]
    """Levels of neighbouring pixels, blended with others by a weight for each pixel."""
    weights = np.empty(target.shape[0])
    for i in range(weight.shape[0]):
        weights[3 * i] = weights[3 * i + 1] = weights[3 * i + 2] = weight[i]
    for i in range(target.shape[0]):
        level = float64(here[i])
        target[i] = uint8(int32(level + (float64(there[i]) - level) * weights[i]))


@compiled()
def _blend_pixels(  # type: ignore[no-untyped-def]
    source, place, right, down, x_weight, y_weight, fill, target, begin, end
):
    """The pixels of some columns, one by one."""
    for column in range(begin, end):
        if place[column] < 0:
            for channel in range(3):
                target[3 * column + channel] = fill[channel]
            continue
        # Unsigned: Numba looks at the sign of an index otherwise, each time.
        upper_left = uint64(place[column])
        upper_right = upper_left + uint64(right[column])
        dx, dy = x_weight[column], y_weight[column]
        if dy == 0.0:
            for channel in range(3):
                level = float64(source[upper_left + uint64(channel)])
                level += (float64(source[upper_right + uint64(channel)]) - level) * dx
                target[3 * column + channel] = uint8(int32(level))
            continue
        lower_left = upper_left + uint64(down[column])
        lower_right = upper_right + uint64(down[column])
        for channel in range(3):
            upper = float64(source[upper_left + uint64(channel)])
            upper += (float64(source[upper_right + uint64(channel)]) - upper) * dx
            lower = float64(source[lower_left + uint64(channel)])
            lower += (float64(source[lower_right + uint64(channel)]) - lower) * dx
            target[3 * column + channel] = uint8(int32(upper + (lower - upper) * dy))


@compiled()
def _luma(levels, i):  # type: ignore[no-untyped-def]
    """As Pillow converts RGB to L, of the pixel at `i`."""
    red, green, blue = int32(levels[i]), int32(levels[i + 1]), int32(levels[i + 2])
    total = int32(19595) * red + int32(38470) * green + int32(7471) * blue
    return (total + int32(0x8000)) >> int32(16)


@compiled()
def _blend(degenerate, level, factor):  # type: ignore[no-untyped-def]
    """PIL.Image.blend of float32 numbers that are whole, truncated."""
    mixed = degenerate + factor * (level - degenerate)
    return uint8(int32(min(max(mixed, float32(0)), float32(255))))


@compiled()
def _color(levels, factor):  # type: ignore[no-untyped-def]
    luma = np.empty(levels.shape[0], np.float32)
    for pixel in range(levels.shape[0] // 3):
        grey = float32(_luma(levels, 3 * pixel))
        luma[3 * pixel] = grey
        luma[3 * pixel + 1] = grey
        luma[3 * pixel + 2] = grey
    for i in range(levels.shape[0]):
        levels[i] = _blend(luma[i], float32(levels[i]), factor)


@compiled()
def _sharpness(source, target, factor):  # type: ignore[no-untyped-def]
    """Rows [H, 3 W]: away from the smoothed image, whose outermost pixels are the image's own."""
    height, length = source.shape
    inner = length - 6
    if inner <= 0:
        return
    columns = np.empty(length, np.int32)  # sums of three rows
    for row in range(1, height - 1):
        above, here, below = source[row - 1], source[row], source[row + 1]
        for i in range(length):
            columns[i] = int32(above[i]) + int32(here[i]) + int32(below[i])
        left, middle, right = columns[:inner], columns[3 : 3 + inner], columns[6:]
        levels, sharper = here[3 : 3 + inner], target[row, 3 : 3 + inner]
        for i in range(inner):
            total = left[i] + middle[i] + right[i] + int32(4) * int32(levels[i])
            # total / 13, rounded: 20165 / 2 ** 19 is as good as 1 / 26 for up to 2 * 13 * 255 + 13.
            smooth = ((int32(2) * total + int32(13)) * int32(20165)) >> int32(19)
            sharper[i] = _blend(float32(smooth), float32(levels[i]), factor)


@compiled()
def _tables(code, levels, value):  # type: ignore[no-untyped-def]
    """uint8 [3, 256]: what each level becomes, channel by channel."""
    tables = np.empty((3, 256), np.uint8)
    if code == _EQUALIZE:
        _equalize(tables, levels)
        return tables
    if code == _AUTO_CONTRAST:
        _stretch(tables, levels)
        return tables
    grey = int32(0)
    if code == _CONTRAST:
        num_pixels = levels.shape[0] // 3
        total = 0
        for i in range(0, levels.shape[0], 3):
            total += _luma(levels, i)
        grey = int32((2 * total + num_pixels) // (2 * num_pixels))  # the mean, rounded half up
    for number in range(256):
        level, whole = int32(number), int32(value)
        if code in (_CONTRAST, _BRIGHTNESS):
            changed = _blend(float32(grey), float32(level), value)
        elif code == _SOLARIZE:
            changed = uint8(level) if level < whole else uint8(int32(255) - level)
        elif code == _SOLARIZE_ADD:
            changed = uint8(min(int32(255), level + whole)) if level < 128 else uint8(level)
        else:  # POSTERIZE
            changed = uint8(level & whole)
        tables[0, number] = tables[1, number] = tables[2, number] = changed
    return tables


@compiled()
def _equalize(tables, levels):  # type: ignore[no-untyped-def]
    """Pillow's ImageOps.equalize: (n + step // 2) // step for a level with n darker pixels."""
    # Of two pixels in turn: to count one level twice in succession is to wait for the first.
    counts = np.zeros((2, 3, 256), np.int32)
    for i in range(0, levels.shape[0], 3):
        for channel in range(3):
            counts[i & 1, channel, levels[i + channel]] += int32(1)
    for channel in range(3):
        brightest = 0
        for level in range(256):
            counts[0, channel, level] += counts[1, channel, level]
            if counts[0, channel, level] > 0:
                brightest = level
        step = (levels.shape[0] // 3 - counts[0, channel, brightest]) // 255
        darker = 0
        for level in range(256):
            equalized = level if step == 0 else min(255, (darker + step // 2) // step)
            tables[channel, level] = equalized
            darker += counts[0, channel, level]


_LANES = 96  # whole pixels, and whole vectors of 32 bytes


@compiled()
def _stretch(tables, levels):  # type: ignore[no-untyped-def]
    """Pillow's ImageOps.autocontrast; a channel of one level stays as it is."""
    lowest, highest = np.full(_LANES, 255, np.uint8), np.zeros(_LANES, np.uint8)
    for first in range(0, levels.shape[0], _LANES):
        part = levels[first : first + _LANES]
        for lane in range(part.shape[0]):
            lowest[lane] = min(lowest[lane], part[lane])
            highest[lane] = max(highest[lane], part[lane])
    for channel in range(3):
        low, high = float64(lowest[channel::3].min()), float64(highest[channel::3].max())
        for level in range(256):
            stretched = float64(level)
            if high > low:
                scale = 255.0 / (high - low)
                stretched = min(255.0, max(0.0, level * scale + -low * scale))
            tables[channel, level] = uint8(int32(stretched))


@compiled()
def _look_up(levels, tables):  # type: ignore[no-untyped-def]
    for i in range(0, levels.shape[0], 3):
        levels[i] = tables[0, levels[i]]
        levels[i + 1] = tables[1, levels[i + 1]]
        levels[i + 2] = tables[2, levels[i + 2]]


@compiled(
    "void(uint8[:,:,:,::1], uint8[:,::1], float32[:,::1], float64[:,:,:,::1], uint8[::1], int64, "
    "int64)"
)
def rand_augment_numba(images, branch, value, matrix, fill, first, step):  # type: ignore[no-untyped-def]
    """Apply the drawn operations to every `step`-th image from `first` on, in place.

    Args:
        images: uint8 [B, H, W, 3], contiguous.
        branch, value, matrix: see `kernels.rand_augment.rand_augment`; contiguous.
        fill: uint8 [3].
    """
    _, height, width, _ = images.shape
    for row in range(first, images.shape[0], step):
        image = images[row]
        levels = image.reshape(3 * height * width)
        for layer in range(branch.shape[1]):
            code = branch[row, layer]
            if code == _SKIP:
                continue
            if code == _WARP:
                _warp(levels.copy(), image, matrix[row, layer], fill)
            elif code == _COLOR:
                _color(levels, value[row, layer])
            elif code == _SHARPNESS:
                rows = image.reshape(height, 3 * width)
                _sharpness(rows.copy(), rows, value[row, layer])
            else:
                _look_up(levels, _tables(code, levels, value[row, layer]))
