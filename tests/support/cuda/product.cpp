// A product's kernel, named by -DSOURCE, as a function of C: what a launch passes, the grid, and a seed.
#include SOURCE

extern "C" void run(int grid_x, int grid_y, int grid_z, int threads, int seed, const u16 *x, const uint4 *words,
                    const u32 *scales, u16 *y, float *parts, int *counters, int rows, int outputs, int columns,
                    int blocks, int blocks_per_group, int per_share, int left) {
  launch({grid_x, grid_y, grid_z}, threads, seed, [=] {
    product(x, words, scales, y, parts, counters, rows, outputs, columns, blocks, blocks_per_group, per_share, left);
  });
}
