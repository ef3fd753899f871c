// y = x W' by mma.sync, from sm_80 on, for few rows: weights are A, so that 1 to 8 rows of x cost the same.
//
// A block has WR x WK warps: WR along the outputs, each with R tiles of 16, and WK along the columns, whose sums meet in
// shared memory. Its rows of x are NT times 8. The grid is (outputs, splits of the columns, rows). Weights come from
// memory STAGES blocks ahead into registers; so does x where it is little, else it is read when it is needed, from cache.
#include <finish.cuh>

#define TOKENS (NT * 8)
#define THREADS (WR * WK * 32)
#define AHEAD (NT <= 2)

extern "C" __global__ void __launch_bounds__(THREADS)
product(const u16 *x, const uint4 *words, const u32 *scales, u16 *y, float *parts, int *counters, int rows,
        int outputs, int columns, int blocks, int blocks_per_group, int per_share, int left) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int wr = warp % WR, wk = warp / WR;
  const Matrix matrix = {words, scales, (outputs + 15) / 16, blocks, blocks_per_group};
  const Output out = {y, parts, counters, rows, outputs};
  const int share = blockIdx.y * WK + wk, first_row = blockIdx.z * TOKENS;
  const int begin = first_block(share, per_share, left), end = first_block(share + 1, per_share, left);
  Block w[STAGES][R];
  Columns ahead[STAGES][2][AHEAD ? NT : 1];
  float sums[R][NT][4] = {};

  auto load_weights = [&](int stage, int block) {
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int tile = (blockIdx.x * WR + wr) * R + r;
      w[stage][r].load(matrix, tile < matrix.tiles ? tile : matrix.tiles - 1, block, lane);
    }
  };
  auto load_x = [&](int stage, int block) {
    if (!AHEAD) return;
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        ahead[stage][half][AHEAD ? n : 0].load(x, first_row + n * 8 + g, block * 128 + half * 64 + 16 * t, rows, columns);
  };
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++)
    if (begin + stage < end) load_weights(stage, begin + stage);
  let_dependents_start();
  wait_for_inputs();
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++)
    if (begin + stage < end) load_x(stage, begin + stage);

  for (int first = begin; first < end; first += STAGES) {
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
      const int block = first + stage;
      if (block >= end) break;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        u32 a[R][4][4];
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
          for (int i = 0; i < 4; i++) w[stage][r].fragment(half, i, a[r][i]);
#pragma unroll
        for (int n = 0; n < NT; n++) {
          Columns now;
          if (AHEAD) now = ahead[stage][half][AHEAD ? n : 0];
          else now.load(x, first_row + n * 8 + g, block * 128 + half * 64 + 16 * t, rows, columns);
#pragma unroll
          for (int i = 0; i < 4; i++)
#pragma unroll
            for (int r = 0; r < R; r++) {
              if (BFLOAT) mma_bfloat(sums[r][n], a[r][i], now.low(i), now.high(i));
              else mma_half(sums[r][n], a[r][i], now.low(i), now.high(i));
            }
        }
      }
      if (block + STAGES < end) {
        load_weights(stage, block + STAGES);
        load_x(stage, block + STAGES);
      }
    }
  }

  const int outputs_here = WR * R * 16, stride = outputs_here + 1;
  float *shared = reinterpret_cast<float *>(shared_memory());
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int m = n * 8 + 2 * t + (i & 1), c = (wr * R + r) * 16 + g + 8 * (i >> 1);
        shared[(wk * TOKENS + m) * stride + c] = sums[r][n][i];
      }
  __syncthreads();
  finish<WK, TOKENS, WR * R * 16, 1, THREADS>(shared, out, first_row, blockIdx.x * outputs_here);
}
