// Weights of four and of three bits (BITS) as the tensor cores take them.
//
// A tile is 16 outputs x 64 columns, 512 bytes: word i of a lane's uint4 is its fragment of A [16, 16] in the i-th product
// of the tile. Lane 4 g + t has outputs g and g + 8 and the columns 16 t ... 16 t + 15 of the tile, so that its part of
// x, too, is contiguous: the columns 16 t + 4 i + 2 h + e take the places 2 t + 8 h + e of product i. In a word, bits
// 4 (r + 2 h) + 16 e ... + 3 are the code of output g + 8 r and of that column.
//
// A block is two tiles, 128 columns. Of three bits it is 768 bytes: first, for each lane, a uint4 with two words of low bits
// of either tile, then for each lane a uint2 with a word of high bits of either tile. Where the word of product i would have
// a nibble, bits 2 (i & 1) of the nibble in the (i >> 1)-th word have the low two bits of the code, and bit i of the one in
// the word of high bits its third: two masks make the word of four bits.
//
// Scale and zero of an output are a pair of 16-bit numbers; SETS of them serve a block.
#pragma once
#include <ptx.cuh>

// GROUP: columns of a scale, 32, 64 or 128; 0 for any number of whole blocks.
#define SETS (GROUP == 32 || GROUP == 64 ? 2 : 1)

DEVICE int group_of(int block, int half, int t, int blocks_per_group) {
  if (GROUP == 32) return block * 4 + half * 2 + (t >> 1);
  if (GROUP == 64) return block * 2 + half;
  if (GROUP == 128) return block;
  return block / blocks_per_group;
}

DEVICE int groups_of(int blocks, int blocks_per_group) {
  if (GROUP) return blocks * (GROUP == 32 ? 4 : GROUP == 64 ? 2 : 1);
  return (blocks + blocks_per_group - 1) / blocks_per_group;
}

// Where a share of the columns begins: of all blocks, each share has `per_share`, and the first `left` one more.
DEVICE int first_block(int share, int per_share, int left) {
  return share * per_share + (share < left ? share : left);
}

struct Matrix {
  const uint4 *words;  // [tiles of outputs][2 blocks][32 lanes]; of three bits [tiles of outputs][blocks][48]
  const u32 *scales;   // [tiles of outputs][groups][16 outputs]: scale in the lower half, zero in the upper
  int tiles, blocks, blocks_per_group;
};

#define MIDDLE (1 << (BITS - 1))  // the code that stands for z

// The codes of a block of one tile of outputs, as a lane holds them; `of` makes the word of product i of a half.
#if BITS == 3
struct Codes {
  uint4 low;
  uint2 high;

  DEVICE void load(const uint4 *words, u64 block, int lane) {
    low = load_once(words + block * 48 + lane);
    high = load_once(reinterpret_cast<const uint2 *>(words + block * 48 + 32) + lane);
  }

  DEVICE u32 of(int half, int i) const {
    const u32 two = half ? (i < 2 ? low.z : low.w) : (i < 2 ? low.x : low.y), one = half ? high.y : high.x;
    return and_or(two >> 2 * (i & 1), 0x33333333, (i < 2 ? one << (2 - i) : one >> (i - 2)) & 0x44444444);
  }
};
#else
struct Codes {
  uint4 words[2];

  DEVICE void load(const uint4 *from, u64 block, int lane) {
    words[0] = load_once(from + block * 64 + lane);
    words[1] = load_once(from + block * 64 + 32 + lane);
  }

  DEVICE u32 of(int half, int i) const {
    return i == 0 ? words[half].x : i == 1 ? words[half].y : i == 2 ? words[half].z : words[half].w;
  }
};
#endif

// A block of one tile of outputs, as a lane holds it.
struct Block {
  Codes codes;
  u32 scales[SETS][2];

  DEVICE void load(const Matrix &matrix, int tile, int block, int lane) {
    const int groups = groups_of(matrix.blocks, matrix.blocks_per_group);
    codes.load(matrix.words, (u64)tile * matrix.blocks + block, lane);
#pragma unroll
    for (int set = 0; set < SETS; set++) {
      const int group = group_of(block, set, lane & 3, matrix.blocks_per_group);
      const u32 *s = matrix.scales + ((u64)tile * groups + group) * 16 + (lane >> 2);
      scales[set][0] = load_constant(s);
      scales[set][1] = load_constant(s + 8);
    }
  }

  // Product i of a half: s (q - middle) + z in the 16-bit type of x, rounded once.
  DEVICE void fragment(int half, int i, u32 a[4]) const {
    const u32 w = codes.of(half, i);
    const int set = SETS == 2 ? half : 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const u32 pair = scales[set][j & 1];
      a[j] = fma2(centred(w, j), low_twice(pair), high_twice(pair));
    }
  }

#if BFLOAT
  // 0x4300 | q is 128 + q
  static DEVICE u32 centred(u32 w, int j) {
    return fma_bfloat2(and_or(w >> (4 * j), 0x000f000f, 0x43004300), 0x3f803f80, 0xc300c300 + MIDDLE * 0x10001);
  }
  static DEVICE u32 fma2(u32 v, u32 s, u32 z) { return fma_bfloat2(v, s, z); }
#else
  // 0x6400 | q is 1024 + q; one nibble higher it is 1024 + 16 q, of which a sixteenth is 64 + q
  static DEVICE u32 centred(u32 w, int j) {
    if (j & 1)
      return fma_half2(and_or(w >> (4 * (j - 1)), 0x00f000f0, 0x64006400), 0x2c002c00, 0xd400d400 + MIDDLE * 0x100010);
    return fma_half2(and_or(w >> (4 * j), 0x000f000f, 0x64006400), 0x3c003c00, 0xe400e400 + MIDDLE * 0x10001);
  }
  static DEVICE u32 fma2(u32 v, u32 s, u32 z) { return fma_half2(v, s, z); }
#endif
};

DEVICE u16 rounded(float v) { return BFLOAT ? bfloat_of(v) : half_of(v); }
DEVICE float widened(u16 v) { return BFLOAT ? float_of_bfloat(v) : float_of_half(v); }

// 16 columns of a row of x from `column` on, as lane 4 g + t of row g needs them in one half of a block; 0 outside.
struct Columns {
  uint4 v[2];

  DEVICE void load(const u16 *x, int row, int column, int rows, int columns) {
    v[0] = v[1] = make_uint4(0, 0, 0, 0);
    if (row < rows && column < columns) {
      const uint4 *p = reinterpret_cast<const uint4 *>(x + (u64)row * columns + column);
      v[0] = p[0];
      v[1] = p[1];
    }
  }

  // Registers of B: columns 4 i ... 4 i + 3.
  DEVICE u32 low(int i) const { return i & 1 ? v[i >> 1].z : v[i >> 1].x; }
  DEVICE u32 high(int i) const { return i & 1 ? v[i >> 1].w : v[i >> 1].y; }
};
