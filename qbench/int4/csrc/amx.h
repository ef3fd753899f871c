/* What the two products with AMX share: 16 rows of x by 16 rows of the weight and 32 columns in one instruction. */
#ifndef AMX_H
#define AMX_H

#define TARGET                                                                                                        \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma,f16c,amx-tile,amx-bf16,amx-int8,"         \
                          "prefer-vector-width=512")))
#include "avx512.h"

#include <string.h>

enum { M_TILE = 16, K_TILE = 32, TILE = M_TILE * K_TILE };

/* Some compilers do not know that tile instructions read memory: what they are to find there is written before this. */
INLINE void written(void) { __asm__ volatile("" ::: "memory"); }

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

/* Registers 0 to weights - 1, results and x, get so many rows, the others, the weight, so many; x so many bytes a row. */
INLINE void configure(int weights, int x_rows, int weight_rows, int x, int x_bytes)
{
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = (uint16_t)(i >= x && i < weights ? x_bytes : 64);
        config.rows[i] = (uint8_t)(i < weights ? x_rows : weight_rows);
    }
    written();
    _tile_loadconfig(&config);
}

/* The threads are torch's, and its own kernels keep a configuration between calls: leave it as it was. */
INLINE void restore(const uint8_t before[64])
{
    if (before[0]) _tile_loadconfig(before);
    else _tile_release();
}

#endif
