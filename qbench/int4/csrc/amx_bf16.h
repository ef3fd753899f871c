/* How products with AMX in bfloat16 take x. */
#ifndef AMX_BF16_H
#define AMX_BF16_H

#include "amx.h"

/* Rows of x as tiles [m / 16][kp / 32][16][32]. Rows that are missing to 16 stay as they are: their results go
   nowhere. Also their sums over the segments. */
static TARGET void prepare_tiles(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Product *p = pointer;
    const Weight *w = &p->w;
    for (ptrdiff_t row = first; row < last; row++) {
        const uint16_t *x = (const uint16_t *)p->x + row * w->k;
        uint16_t *tiles = p->tiles + row / M_TILE * M_TILE * w->kp + row % M_TILE * K_TILE;
        for (ptrdiff_t k = 0; k < w->kp; k += K_TILE) {
            ptrdiff_t left = w->k - k;
            __mmask32 columns = left >= K_TILE ? 0xffffffff : ((__mmask32)1 << left) - 1;
            _mm512_storeu_si512(tiles + k * M_TILE, _mm512_maskz_loadu_epi16(columns, x + k));
        }
        for (ptrdiff_t g = 0; g < p->segments; g++) {
            __m512 sum = _mm512_setzero_ps();
            for (ptrdiff_t k = 0; k < segment_columns(p, g); k += 16)
                sum = _mm512_add_ps(sum, load_bf16(p, row, g * p->segment + k));
            p->sums[row * p->segments + g] = _mm512_reduce_add_ps(sum);
        }
    }
}

#endif
