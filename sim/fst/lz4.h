// Stand-in for liblz4 where Verilator's FST writer includes it: a valid LZ4 block of literals only. Waveform files
// become larger, but need no library on the user's machine.
#pragma once
#include <cstring>

inline int LZ4_compressBound(int size) { return size + size / 255 + 16; }

inline int LZ4_compress_default(const char* source, char* target, int size, int) {
    unsigned char* out = reinterpret_cast<unsigned char*>(target);
    *out++ = static_cast<unsigned char>(size < 15 ? size << 4 : 0xF0);
    if (size >= 15) {
        int rest = size - 15;
        for (; rest >= 255; rest -= 255) *out++ = 255;
        *out++ = static_cast<unsigned char>(rest);
    }
    std::memcpy(out, source, static_cast<size_t>(size));
    return static_cast<int>(out - reinterpret_cast<unsigned char*>(target)) + size;
}
