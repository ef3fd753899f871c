// The weight [outputs, columns] in 16 bits. A block of four warps has 64 outputs and 128 columns.
#include <weights.cuh>

extern "C" __global__ void __launch_bounds__(128)
dequantize(const uint4 *words, const u32 *scales, u16 *weight, int outputs, int columns, int blocks,
           int blocks_per_group) {
  const int lane = threadIdx.x & 31, tile = blockIdx.x * 4 + (threadIdx.x >> 5);
  const Matrix matrix = {words, scales, (outputs + 15) / 16, blocks, blocks_per_group};
  if (tile >= matrix.tiles) return;
  Block w;
  w.load(matrix, tile, blockIdx.y, lane);
#pragma unroll
  for (int half = 0; half < 2; half++) {
    u32 a[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) w.fragment(half, i, a[i]);
    const int first = blockIdx.y * 128 + half * 64 + 16 * (lane & 2), odd = lane & 1, column = first + 16 * odd;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int n = tile * 16 + (lane >> 2) + 8 * r;
      const uint4 own[2] = {make_uint4(a[0][r], a[0][r + 2], a[1][r], a[1][r + 2]),
                            make_uint4(a[2][r], a[2][r + 2], a[3][r], a[3][r + 2])};
      const uint4 other = of_neighbour(own[1 - odd]);  // its half `odd`
      if (n >= outputs) continue;
      u16 *p = weight + (u64)n * columns;
      if (columns % 16 == 0) {
        // Two lanes write 32 bytes together, all of a sector, first those of the one and then those of the other.
        uint4 *wide = reinterpret_cast<uint4 *>(p + first + 8 * odd);
        if (first < columns) wide[0] = odd ? other : own[0];
        if (first + 16 < columns) wide[2] = odd ? own[1] : other;
      } else {
#pragma unroll
        for (int k = 0; k < 16; k++)
          if (column + k < columns) p[column + k] = (u16)(a[k >> 2][r + (k & 2)] >> (16 * (k & 1)));
      }
    }
  }
}
