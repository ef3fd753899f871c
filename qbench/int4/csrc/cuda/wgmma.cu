// y = x W' by wgmma, on sm_90a, from 16 rows on: weights are A and stay in registers, x lies once in shared memory.
//
// A block has WR x WK groups of four warps: WR along the outputs, each with R tiles of 64, and WK along the columns. The
// groups of one share of the columns read the same x. A block of 128 columns of x goes through registers into one of
// three buffers, as `stmatrix` lays it out in the order of columns that the weights have.
#include <finish.cuh>

#define TOKENS (NT * 8)
#define GROUP_WARPS (WR * 4)
#define THREADS (GROUP_WARPS * WK * 32)
#define BUFFERS 3
#define CELL 128                      // bytes of 8 tokens x 8 columns
#define HALF (8 * NT * CELL)          // of 64 columns
#define BUFFER (2 * HALF)
#define TASKS ((2 * NT + GROUP_WARPS - 1) / GROUP_WARPS)
#define STEPS (R * NT >= 16 || THREADS > 256 ? 2 : 4)   // products of 16 columns that are committed together
#define COMMITS (8 / STEPS)           // of a block

extern "C" __global__ void __launch_bounds__(THREADS)
product(const u16 *x, const uint4 *words, const u32 *scales, u16 *y, float *parts, int *counters, int rows,
        int outputs, int columns, int blocks, int blocks_per_group, int per_share, int left) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int wk = warp / GROUP_WARPS, in_group = warp % GROUP_WARPS, wr = in_group / 4;
  const Matrix matrix = {words, scales, (outputs + 15) / 16, blocks, blocks_per_group};
  const Output out = {y, parts, counters, rows, outputs};
  const int share = blockIdx.y * WK + wk, first_row = blockIdx.z * TOKENS;
  const int begin = first_block(share, per_share, left), end = first_block(share + 1, per_share, left);
  char *buffers = shared_memory() + wk * BUFFERS * BUFFER;
  Block w[STAGES][R];
  Columns ahead[TASKS];
  float sums[R][NT * 4] = {};
  u32 a[2][R][STEPS][4];

  auto load_weights = [&](int stage, int block) {
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int tile = ((blockIdx.x * WR + wr) * R + r) * 4 + (in_group & 3);
      w[stage][r].load(matrix, tile < matrix.tiles ? tile : matrix.tiles - 1, block, lane);
    }
  };
  // A task is eight rows of x and one half of a block; those of a warp are of the same half, and GROUP_WARPS / 2 apart.
  const int half_of_x = in_group & 1, task_row = in_group / 2 * 8;
  char *const cell = buffers + half_of_x * HALF + (lane >> 3) * NT * CELL + task_row / 8 * CELL + (lane & 7) * 16;
  auto load_x = [&](int block) {
    const int column = block * 128 + half_of_x * 64 + 16 * t;
#pragma unroll
    for (int i = 0; i < TASKS; i++)
      if (i * GROUP_WARPS + in_group < 2 * NT)
        ahead[i].load(x, first_row + task_row + g + i * 4 * GROUP_WARPS, column, rows, columns);
  };
  auto store_x = [&](int turn) {
#pragma unroll
    for (int i = 0; i < TASKS; i++) {
      char *const to = cell + turn * BUFFER + i * GROUP_WARPS / 2 * CELL;
      if (i * GROUP_WARPS + in_group < 2 * NT) {
        store_matrices(to, reinterpret_cast<const u32 *>(&ahead[i].v[0]));
        store_matrices(to + 4 * NT * CELL, reinterpret_cast<const u32 *>(&ahead[i].v[1]));
      }
    }
    publish_shared();
  };
  auto pin_sums = [&] {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
      for (int j = 0; j < NT * 4; j++) pin(sums[r][j]);
  };
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++)
    if (begin + stage < end) load_weights(stage, begin + stage);
  let_dependents_start();
  wait_for_inputs();
  if (begin < end) load_x(begin);

  // ptxas lets products overlap only if, from here on, nothing but wgmma writes their sums.
  pin_sums();
  wgmma_begin();
  int turn = 0;
  for (int first = begin; first < end; first += STAGES) {
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
      const int block = first + stage;
      if (block >= end) break;
      // Whoever passed the last barrier had finished with the products of the block before the last but one, which was
      // the previous one in this buffer.
      const char *buffer = buffers + turn * BUFFER;
      store_x(turn);
      turn = turn == BUFFERS - 1 ? 0 : turn + 1;
      barrier(1 + wk, GROUP_WARPS * 32);
      if (block + 1 < end) load_x(block + 1);
#pragma unroll
      for (int commit = 0; commit < COMMITS; commit++) {
        const int half = commit * STEPS / 4;
        u32(&now)[R][STEPS][4] = a[commit & 1];
        wgmma_wait<1>();  // these registers are free again
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
          for (int step = 0; step < STEPS; step++) {
            w[stage][r].fragment(half, (commit * STEPS + step) % 4, now[r][step]);
            pin(now[r][step]);
          }
        wgmma_begin();
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
          const int i = (commit * STEPS + step) % 4;
          const Descriptor b = describe(buffer + half * HALF + 2 * i * NT * CELL, NT * CELL, CELL);
#pragma unroll
          for (int r = 0; r < R; r++) {
            if (BFLOAT) Wgmma<TOKENS>::bfloat(sums[r], now[r][step], b);
            else Wgmma<TOKENS>::half(sums[r], now[r][step], b);
          }
        }
        wgmma_commit();
      }
      if (block + STAGES < end) load_weights(stage, block + STAGES);
    }
  }
  wgmma_wait<0>();
  pin_sums();
  __syncthreads();

  const int outputs_here = WR * R * 64, stride = outputs_here + 4;
  float *shared = reinterpret_cast<float *>(shared_memory());
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int j = 0; j < NT * 4; j++) {
      const int m = (j >> 2) * 8 + 2 * t + (j & 1);
      const int c = (wr * R + r) * 64 + (in_group & 3) * 16 + g + 8 * (j >> 1 & 1);
      shared[(wk * TOKENS + m) * stride + c] = sums[r][j];
    }
  __syncthreads();
  finish<WK, TOKENS, WR * R * 64, 4, THREADS>(shared, out, first_row, blockIdx.x * outputs_here);
}
