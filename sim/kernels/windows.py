"""Windows of images: operands of convolutions, depthwise convolutions, pooling."""

from __future__ import annotations

import numpy as np

from ..compiled import compiled

__all__ = ["average", "depthwise", "gather", "maximum"]


@compiled()
def gather(x, fill, window, first, count, channel, depth, out):
    """Operands of `count` output pixels from number `first` on (over all images, row by row) into out (rows, K).

    x int8 (N, H, W, C); `window` = (kh, kw, stride y, stride x, dilation y, dilation x, pad above, pad left, Ho, Wo);
    a row of out holds `depth` channels from `channel` on of every tap, in order, with `fill` outside the image.
    """
    kh, kw, stride_y, stride_x, dilation_y, dilation_x, top, left, out_height, out_width = window
    height, width, channels = x.shape[1:]
    for i in range(count):
        image, pixel = (first + i) // (out_height * out_width), (first + i) % (out_height * out_width)
        y, ix = pixel // out_width * stride_y - top, pixel % out_width * stride_x - left
        at = 0
        for iy in range(y, y + kh * dilation_y, dilation_y):
            inside = 0 <= iy < height
            if inside and depth == channels and dilation_x == 1 and ix >= 0 and ix + kw <= width:
                run = x[image, iy, ix : ix + kw].reshape(kw * channels)
                for c in range(kw * channels):
                    out[i, at + c] = run[c]
                at += kw * channels
                continue
            for tap in range(ix, ix + kw * dilation_x, dilation_x):
                if inside and 0 <= tap < width:
                    for c in range(depth):
                        out[i, at + c] = x[image, iy, tap, channel + c]
                else:
                    for c in range(depth):
                        out[i, at + c] = fill
                at += depth


@compiled()
def depthwise(x, fill, window, first, count, w, out):
    """Sums of `count` output pixels of a depthwise convolution, as in `gather`, into out int32 (rows, C).

    w is int32 (taps, C).
    """
    kh, kw, stride_y, stride_x, dilation_y, dilation_x, top, left, out_height, out_width = window
    height, width, channels = x.shape[1:]
    for i in range(count):
        image, pixel = (first + i) // (out_height * out_width), (first + i) % (out_height * out_width)
        y, ix = pixel // out_width * stride_y - top, pixel % out_width * stride_x - left
        sums = out[i]
        sums[:] = 0
        for ky in range(kh):
            for kx in range(kw):
                taps, iy, tap = w[ky * kw + kx], y + ky * dilation_y, ix + kx * dilation_x
                if 0 <= iy < height and 0 <= tap < width:
                    codes = x[image, iy, tap]
                    for c in range(channels):
                        sums[c] += np.int32(np.int32(codes[c]) * taps[c])
                else:
                    for c in range(channels):
                        sums[c] += np.int32(fill * taps[c])


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
