/* The product with AMX for up to 8 rows of x: 8-bit dot products with x as two limbs (see limbs.h), whose rows share a
   tile, so that one instruction multiplies up to 8 rows of x by 16 of the weight and 64 columns. Codes need a mask, no
   table, and half the room that they take in bfloat16. */
#include "qint4.h"

#if defined(__x86_64__)
#include "amx.h"
#include "limbs.h"

enum { TILES = 4, M_MAX = 8 };

typedef __m512i Codes[TILES][MAX_SEGMENT / 4]; /* [tile][4 columns of 16 rows] */

typedef struct {
    Codes codes[2];
    _Alignas(64) int32_t results[TILES][2 * M_MAX][ROWS];
} Memory;

/* Codes of the columns [k, k + width) of some tiles, to the places of step `step` of a segment. */
INLINE void mask(const Product *p, ptrdiff_t tile, int tiles, ptrdiff_t k, ptrdiff_t step, Codes codes)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    for (int t = 0; t < tiles; t++) {
        const uint32_t *word = p->w.words + ((tile + t) * p->w.kp + k) / BLOCK * ROWS;
        __m512i *to = codes[t] + step * p->limbs_width / 4;
        for (ptrdiff_t b = 0; b < p->limbs_width / BLOCK; b++, word += ROWS) {
            __m512i packed = _mm512_load_si512(word);
            _mm_prefetch((const char *)word + AHEAD, _MM_HINT_T0);
            *to++ = _mm512_and_si512(packed, nibble);
            *to++ = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
        }
    }
}

INLINE void step_of_tiles(const Product *p, ptrdiff_t k, ptrdiff_t step, int tiles, Codes codes)
{
    const ptrdiff_t at = step * p->limbs_width / 4;
    _tile_loadd(4, p->limbs + 2 * k * p->m, p->limbs_width);
    _tile_loadd(5, &codes[0][at], 64);
    _tile_dpbsud(0, 4, 5);
    if (tiles < 4) return;
    _tile_loadd(6, &codes[1][at], 64);
    _tile_dpbsud(1, 4, 6);
    _tile_loadd(7, &codes[2][at], 64);
    _tile_dpbsud(2, 4, 7);
    _tile_loadd(5, &codes[3][at], 64);
    _tile_dpbsud(3, 4, 5);
}

/* `tiles` of the weight, 4 or 1, a constant after inlining. */
INLINE void tiles_of(const Product *p, Memory *memory, ptrdiff_t tile, int tiles)
{
    const ptrdiff_t width = p->limbs_width;
    __m512 totals[TILES][M_MAX];
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < M_MAX; i++) totals[t][i] = _mm512_setzero_ps();
    for (ptrdiff_t j = 0; j < segment_columns(p, 0) / width; j++) mask(p, tile, tiles, j * width, j, memory->codes[0]);
    for (ptrdiff_t g = 0; g < p->segments; g++) {
        ptrdiff_t k = g * p->segment, next = k + p->segment;
        ptrdiff_t next_steps = g + 1 < p->segments ? segment_columns(p, g + 1) / width : 0;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (ptrdiff_t j = 0; j < segment_columns(p, g) / width; j++) {
            if (j < next_steps) mask(p, tile, tiles, next + j * width, j, memory->codes[(g + 1) % 2]);
            written();
            step_of_tiles(p, k + j * width, j, tiles, memory->codes[g % 2]);
        }
        _tile_stored(0, memory->results[0], 64);
        if (tiles == 4) {
            _tile_stored(1, memory->results[1], 64);
            _tile_stored(2, memory->results[2], 64);
            _tile_stored(3, memory->results[3], 64);
        }
        for (int t = 0; t < tiles; t++) {
            const uint16_t *scales = scales_at(&p->w, tile + t, k);
            __m512 s = scales16(&p->w, scales), offset = offset_of(s, scales16(&p->w, scales + ROWS));
            for (ptrdiff_t i = 0; i < p->m; i++) {
                __m512i high = _mm512_load_si512(memory->results[t][i]);
                __m512i low = _mm512_load_si512(memory->results[t][p->m + i]);
                totals[t][i] = scaled(p, i, g, high, low, s, offset, totals[t][i]);
            }
        }
    }
    for (int t = 0; t < tiles; t++)
        for (ptrdiff_t i = 0; i < p->m; i++) store_bf16(p, i, tile + t, totals[t][i]);
}

static TARGET void multiply(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    static _Thread_local Memory memory;
    const Product *p = pointer;
    uint8_t before[64];
    _tile_storeconfig(before);
    configure(5, 2 * (int)p->m, (int)p->limbs_width / 4, 4, (int)p->limbs_width);
    ptrdiff_t tile = first;
    for (; tile + TILES <= last; tile += TILES) tiles_of(p, &memory, tile, TILES);
    for (; tile < last; tile++) tiles_of(p, &memory, tile, 1);
    restore(before);
}

const Method bf16_amx_small = {prepare_limbs, multiply, TILES, TILES, 2 * sizeof(int8_t), 64, 0};
#endif
