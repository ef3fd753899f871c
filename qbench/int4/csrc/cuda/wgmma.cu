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

extern "C" __global__ void __launch_bounds__(THREADS)
product(const u16 *x, const uint4 *words, const u32 *scales, u16 *y, float *parts, int *counters, int rows,
        int outputs, int columns, int blocks, int blocks_per_group) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int wk = warp / GROUP_WARPS, in_group = warp % GROUP_WARPS, wr = in_group / 4;
  const Matrix matrix = {words, scales, (outputs + 15) / 16, blocks, blocks_per_group};
  const Output out = {y, parts, counters, rows, outputs};
  const int share = blockIdx.y * WK + wk, shares = gridDim.y * WK, first_row = blockIdx.z * TOKENS;
  const int begin = (int)((u64)blocks * share / shares), end = (int)((u64)blocks * (share + 1) / shares);
  char *buffers = shared_memory() + wk * BUFFERS * BUFFER;
  Block w[STAGES][R];
  Columns ahead[TASKS];
  float sums[R][NT * 4] = {};
  u32 a[2][R][4][4];

  auto load_weights = [&](int stage, int block) {
#pragma unroll
    for (int r = 0; r < R; r++) {
      const int tile = ((blockIdx.x * WR + wr) * R + r) * 4 + (in_group & 3);
      w[stage][r].load(matrix, tile < matrix.tiles ? tile : matrix.tiles - 1, block, lane);
    }
  };
  // A task is eight rows of x and one half of a block.
  auto load_x = [&](int block) {
#pragma unroll
    for (int i = 0; i < TASKS; i++) {
      const int task = i * GROUP_WARPS + in_group;
      if (task < 2 * NT)
        ahead[i].load(x, first_row + task / 2 * 8 + g, block * 128 + (task & 1) * 64 + 16 * t, rows, columns);
    }
  };
  auto store_x = [&](char *buffer) {
#pragma unroll
    for (int i = 0; i < TASKS; i++) {
      const int task = i * GROUP_WARPS + in_group;
      if (task < 2 * NT) {
        char *cell = buffer + (task & 1) * HALF + ((lane >> 3) * NT + task / 2) * CELL + (lane & 7) * 16;
        store_matrices(cell, reinterpret_cast<const u32 *>(&ahead[i].v[0]));
        store_matrices(cell + 4 * NT * CELL, reinterpret_cast<const u32 *>(&ahead[i].v[1]));
      }
    }
    publish_shared();
  };
#pragma unroll
  for (int stage = 0; stage < STAGES; stage++)
    if (begin + stage < end) load_weights(stage, begin + stage);
  let_dependents_start();
  wait_for_inputs();
  if (begin < end) load_x(begin);

  int turn = 0;
  for (int first = begin; first < end; first += STAGES) {
#pragma unroll
    for (int stage = 0; stage < STAGES; stage++) {
      const int block = first + stage;
      if (block >= end) break;
      // Whoever passed the last barrier had finished with the products of the block before the last but one, which was
      // the previous one in this buffer.
      char *buffer = buffers + turn * BUFFER;
      turn = turn == BUFFERS - 1 ? 0 : turn + 1;
      store_x(buffer);
      barrier(1 + wk, GROUP_WARPS * 32);
      if (block + 1 < end) load_x(block + 1);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        wgmma_wait<1>();  // the registers of this half are free again
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
          for (int i = 0; i < 4; i++) w[stage][r].fragment(half, i, a[half][r][i]);
        wgmma_begin();
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const Descriptor b = describe(buffer + half * HALF + 2 * i * NT * CELL, NT * CELL, CELL);
#pragma unroll
          for (int r = 0; r < R; r++) {
            if (BFLOAT) Wgmma<TOKENS>::bfloat(sums[r], a[half][r][i], b);
            else Wgmma<TOKENS>::half(sums[r], a[half][r][i], b);
          }
        }
        wgmma_commit();
      }
      if (block + STAGES < end) load_weights(stage, block + STAGES);
    }
  }
  wgmma_wait<0>();
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
