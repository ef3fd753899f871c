#include <dequantize.cu>

extern "C" void run(int grid_x, int grid_y, const uint4 *words, const u32 *scales, u16 *weight, int outputs,
                    int columns, int blocks, int blocks_per_group) {
  launch({grid_x, grid_y, 1}, 128, 1, [=] { dequantize(words, scales, weight, outputs, columns, blocks, blocks_per_group); });
}
