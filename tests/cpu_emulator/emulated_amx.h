// AMX's tiles in plain C++, for processors without them: included before everything else, it takes the place of the
// compiler's intrinsics, or where the compiler knows AMX that of the processor (trapped_amx.h). As strict as it: shapes
// that do not fit, or tiles without a configuration, end the program. Sums are those of Intel's manual: pairs of
// products in two chains of floats, added at the end.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if !defined(__AMX_TILE__)
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig emulated_amx::configure
#define _tile_release emulated_amx::release
#define _tile_loadd emulated_amx::load
#define _tile_stored emulated_amx::store
#define _tile_zero emulated_amx::zero
#define _tile_dpbf16ps emulated_amx::multiply
#endif

namespace emulated_amx {

struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
inline thread_local Configuration current = {};
inline thread_local unsigned char tiles[8][16][64];
inline long multiplications = 0;

inline void require(bool good, const char* what) {
  if (good) return;
  std::fprintf(stderr, "AMX: %s\n", what);
  std::exit(3);
}

inline void configure(const void* from) {
  std::memcpy(&current, from, sizeof(current));
  require(current.palette == 1 && current.start_row == 0, "palette 1 from row 0 is the only one");
  for (int i = 0; i < 16; ++i) {
    require(current.row_bytes[i] <= 64 && current.rows[i] <= 16, "a tile has at most 16 rows of 64 bytes");
    require(i < 8 || (current.row_bytes[i] == 0 && current.rows[i] == 0), "there are 8 tiles");
    require((current.row_bytes[i] == 0) == (current.rows[i] == 0), "a tile needs rows and bytes");
  }
  std::memset(tiles, 0, sizeof(tiles));
}
inline void release() { current = {}; }

inline void check(int tile) { require(tile < 8 && current.rows[tile] > 0, "a tile is used without a configuration"); }

inline void load(int tile, const void* from, int64_t stride) {
  check(tile);
  std::memset(tiles[tile], 0, sizeof(tiles[tile]));
  for (int r = 0; r < current.rows[tile]; ++r)
    std::memcpy(tiles[tile][r], static_cast<const char*>(from) + r * stride, current.row_bytes[tile]);
}

inline void zero(int tile) {
  check(tile);
  std::memset(tiles[tile], 0, sizeof(tiles[tile]));
}

inline void store(int tile, void* to, int64_t stride) {
  check(tile);
  for (int r = 0; r < current.rows[tile]; ++r)
    std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile][r], current.row_bytes[tile]);
}

inline float number(const unsigned char* row, int i) {
  uint16_t half;
  std::memcpy(&half, row + 2 * i, 2);
  const uint32_t bits = uint32_t{half} << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}

inline void multiply(int sum, int a, int b) {
  check(sum), check(a), check(b);
  const int depth = current.row_bytes[a] / 4, columns = current.row_bytes[sum] / 4;
  require(current.rows[a] == current.rows[sum], "sums must have as many rows as a");
  require(current.row_bytes[b] == current.row_bytes[sum], "sums must have as many columns as b");
  require(current.rows[b] == depth, "b must be as deep as a");
  ++multiplications;
  for (int r = 0; r < current.rows[sum]; ++r)
    for (int c = 0; c < columns; ++c) {
      float chains[2] = {0, 0}, before;
      for (int k = 0; k < depth; ++k)
        for (int i = 0; i < 2; ++i) chains[i] += number(tiles[a][r], 2 * k + i) * number(tiles[b][k], 2 * c + i);
      std::memcpy(&before, tiles[sum][r] + 4 * c, 4);
      before += chains[0] + chains[1];
      std::memcpy(tiles[sum][r] + 4 * c, &before, 4);
    }
}

}  // namespace emulated_amx

#if defined(__AMX_TILE__)
#include "trapped_amx.h"
#endif
