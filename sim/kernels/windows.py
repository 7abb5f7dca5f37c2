"""Windows of images: operands of convolutions, depthwise convolutions, pooling."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ..compiled import compiled

__all__ = ["average", "depthwise", "gather", "maximum"]


@intrinsic
def _copy(typing, out, out_at, x, x_at, count):
    """memcpy of `count` bytes between positions of two contiguous arrays of bytes."""

    def generate(context, builder, signature, values):
        out_, out_at_, x_, x_at_, count_ = values
        target = context.make_array(signature.args[0])(context, builder, out_).data
        source = context.make_array(signature.args[2])(context, builder, x_).data
        target, source = builder.gep(target, [out_at_]), builder.gep(source, [x_at_])
        cgutils.raw_memcpy(builder, target, source, count_, 1)
        return context.get_dummy_value()

    return types.void(out, out_at, x, x_at, count), generate


@compiled()
def gather(x, fill, window, first, count, channel, depth, out):
    """Operands of `count` output pixels from number `first` on (over all images, row by row) into out (rows, K).

    x int8 (N, H, W, C); `window` = (kh, kw, stride y, stride x, dilation y, dilation x, pad above, pad left, Ho, Wo);
    a row of out holds `depth` channels from `channel` on of every tap, in order, with `fill` outside the image.
    """
    kh, kw, stride_y, stride_x, dilation_y, dilation_x, top, left, out_height, out_width = window
    height, width, channels = x.shape[1:]
    codes, operands, pitch = x.reshape(-1), out.reshape(-1), out.shape[1]
    joined = depth == channels and dilation_x == 1
    image, pixel = first // (out_height * out_width), first % (out_height * out_width)
    oy, ox = pixel // out_width, pixel % out_width
    for i in range(count):
        at = i * pitch
        ix = ox * stride_x - left
        for ky in range(kh):
            iy = oy * stride_y - top + ky * dilation_y
            row = (image * height + iy) * width
            if not 0 <= iy < height:
                operands[at : at + kw * depth] = fill
            elif joined:
                before, after = min(max(-ix, 0), kw), min(max(ix + kw - width, 0), kw)
                if before:
                    operands[at : at + before * depth] = fill
                if kw > before + after:
                    start = (row + ix + before) * channels
                    _copy(operands, at + before * depth, codes, start, (kw - before - after) * depth)
                if after:
                    operands[at + (kw - after) * depth : at + kw * depth] = fill
            else:
                for kx in range(kw):
                    tap, to = ix + kx * dilation_x, at + kx * depth
                    if 0 <= tap < width:
                        _copy(operands, to, codes, (row + tap) * channels + channel, depth)
                    else:
                        operands[to : to + depth] = fill
            at += kw * depth
        ox += 1
        if ox == out_width:
            ox = 0
            oy += 1
            if oy == out_height:
                oy = 0
                image += 1


@compiled()
def depthwise(x, fill, window, first, count, w, out):
    """Sums of `count` output pixels of a depthwise convolution, as in `gather`, into out int32 (rows, C).

    w is int16 (taps, C) of 8-bit codes, so that products fit 16 bits.
    """
    kh, kw, stride_y, stride_x, dilation_y, dilation_x, top, left, out_height, out_width = window
    height, width, channels = x.shape[1:]
    for i in range(count):
        image, pixel = (first + i) // (out_height * out_width), (first + i) % (out_height * out_width)
        y, ix = pixel // out_width * stride_y - top, pixel % out_width * stride_x - left
        sums = out[i]
        sums[:] = 0
        for ky in range(kh):
            iy = y + ky * dilation_y
            inside = 0 <= iy < height
            if inside and kw == 3 and ix >= 0 and ix + 2 * dilation_x < width:
                a, b, c = x[image, iy, ix], x[image, iy, ix + dilation_x], x[image, iy, ix + 2 * dilation_x]
                u, v, w_ = w[ky * 3], w[ky * 3 + 1], w[ky * 3 + 2]
                for o in range(channels):
                    left_two = np.int32(np.int16(a[o] * u[o])) + np.int32(np.int16(b[o] * v[o]))
                    sums[o] += np.int32(left_two + np.int32(np.int16(c[o] * w_[o])))
                continue
            for kx in range(kw):
                taps, tap = w[ky * kw + kx], ix + kx * dilation_x
                if inside and 0 <= tap < width:
                    codes = x[image, iy, tap]
                    for o in range(channels):
                        sums[o] += np.int32(np.int16(codes[o] * taps[o]))
                else:
                    for o in range(channels):
                        sums[o] += np.int32(fill * taps[o])


@compiled()
def average(x, fill, window, first, count, out):
    """Sums of windows of x, int8 or int16, as in `depthwise` with weights of 1."""
    kh, kw, stride_y, stride_x, _, _, top, left, out_height, out_width = window
    height, width, channels = x.shape[1:]
    for i in range(count):
        image, pixel = (first + i) // (out_height * out_width), (first + i) % (out_height * out_width)
        y, ix = pixel // out_width * stride_y - top, pixel % out_width * stride_x - left
        sums = out[i]
        sums[:] = 0
        for ky in range(kh):
            for kx in range(kw):
                inside = 0 <= y + ky < height and 0 <= ix + kx < width
                for c in range(channels):
                    sums[c] += np.int32(x[image, y + ky, ix + kx, c]) if inside else np.int32(fill)


@compiled()
def maximum(x, window, out):
    """Maxima of windows of x into out (N, Ho, Wo, C) of the same type; padding never wins."""
    kh, kw, stride_y, stride_x, _, _, top, left, out_height, out_width = window
    count, height, width, channels = x.shape
    for image in range(count):
        for oy in range(out_height):
            for ox in range(out_width):
                best = out[image, oy, ox]
                found = False
                for iy in range(max(oy * stride_y - top, 0), min(oy * stride_y - top + kh, height)):
                    for ix in range(max(ox * stride_x - left, 0), min(ox * stride_x - left + kw, width)):
                        for c in range(channels):
                            value = x[image, iy, ix, c]
                            best[c] = max(best[c], value) if found else value
                        found = True
