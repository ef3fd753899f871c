// From the sums of a block's warps to y, always in the same order.
#pragma once
#include <weights.cuh>

struct Output {
  u16 *y;         // [rows, outputs]
  float *parts;   // [splits, rows, outputs]; unused by a single split
  int *counters;  // one for each block of outputs and rows, 0 before and after
  int rows, outputs;
};

// `sums` [PARTS][TOKENS][OUTPUTS + PAD] in shared memory: a part for each share of the columns within this block. With
// several splits, the last block of an output adds up what all of them left in `parts`.
template <int PARTS, int TOKENS, int OUTPUTS, int PAD, int THREADS>
DEVICE void finish(const float *sums, const Output &out, int first_row, int first_output) {
  const int splits = gridDim.y, split = blockIdx.y;
  for (int i = threadIdx.x; i < TOKENS * OUTPUTS; i += THREADS) {
    const int c = i % OUTPUTS, m = i / OUTPUTS, row = first_row + m, n = first_output + c;
    float v = 0;
#pragma unroll
    for (int part = 0; part < PARTS; part++) v += sums[(part * TOKENS + m) * (OUTPUTS + PAD) + c];
    if (row >= out.rows || n >= out.outputs) continue;
    if (splits == 1) out.y[(u64)row * out.outputs + n] = rounded(v);
    else out.parts[((u64)split * out.rows + row) * out.outputs + n] = v;
  }
  if (splits == 1) return;
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    int *counter = out.counters + blockIdx.z * gridDim.x + blockIdx.x;
    last = atomicAdd(counter, 1) == splits - 1;
    if (last) *counter = 0;
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  for (int i = threadIdx.x; i < TOKENS * OUTPUTS; i += THREADS) {
    const int row = first_row + i / OUTPUTS, n = first_output + i % OUTPUTS;
    if (row >= out.rows || n >= out.outputs) continue;
    float v = 0;
    for (int s = 0; s < splits; s++) v += load_shared_by_blocks(out.parts + ((u64)s * out.rows + row) * out.outputs + n);
    out.y[(u64)row * out.outputs + n] = rounded(v);
  }
}
