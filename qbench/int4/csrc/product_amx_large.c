/* The product with AMX for many rows of x: a block of the weight is dequantized to bfloat16 in the order that AMX reads,
   while it and the rows of x it meets fit the second cache, and results are summed up in float32 there.

   What is rounded besides x is the dequantized weight, to bfloat16, as in a product with the whole dequantized weight. */
#include "qint4.h"

#if defined(__x86_64__)
#include "amx_bf16.h"

enum { TILES = 16, K_CHUNK = 512, M_CHUNK = 512 };

typedef struct {
    _Alignas(64) __m512i weight[TILES][K_CHUNK / 2]; /* [tile][pair of columns][row][2] */
    _Alignas(64) float totals[TILES][M_CHUNK * ROWS];
} Memory;

/* Columns [k, k + columns) of a tile, as pairs of bfloat16. */
INLINE void dequantize(const Weight *w, ptrdiff_t tile, ptrdiff_t k, ptrdiff_t columns, __m512i *pairs)
{
    const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                                6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const uint32_t *words = w->words + (tile * w->kp + k) / BLOCK * ROWS;
    __m512 s = _mm512_setzero_ps(), z = s;
    for (ptrdiff_t i = 0; i < columns; i += BLOCK, words += ROWS) {
        if (i % K_ALIGN == 0) {
            const uint16_t *scales = scales_at(w, tile, k + i);
            s = scales16(w, scales);
            z = scales16(w, scales + ROWS);
        }
        __m512i word = _mm512_load_si512(words);
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(word, (unsigned)(4 * c)), codes);
            __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(word, (unsigned)(16 + 4 * c)), codes);
            __m512bh both = _mm512_cvtne2ps_pbh(_mm512_fmadd_ps(s, odd, z), _mm512_fmadd_ps(s, even, z));
            *pairs++ = _mm512_permutexvar_epi16(interleave, (__m512i)both);
        }
    }
}

/* Two tiles of x by two of the weight, added to their totals. */
INLINE void multiply_four(const uint16_t *x, ptrdiff_t stride, ptrdiff_t steps, const __m512i *a, const __m512i *b,
                          float *to_a, float *to_b)
{
    _tile_loadd(0, to_a, 64);
    _tile_loadd(1, to_b, 64);
    _tile_loadd(2, to_a + TILE / 2, 64);
    _tile_loadd(3, to_b + TILE / 2, 64);
    for (ptrdiff_t j = 0; j < steps; j++) {
        _tile_loadd(4, x + j * TILE, 64);
        _tile_loadd(6, a + 16 * j, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + 16 * j, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, x + stride + j * TILE, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, to_a, 64);
    _tile_stored(1, to_b, 64);
    _tile_stored(2, to_a + TILE / 2, 64);
    _tile_stored(3, to_b + TILE / 2, 64);
}

/* `tiles` of the weight by `m` rows of x from row `from` on. Beside an odd last tile
   stands what the memory held before; no one reads its totals. */
static TARGET void block(const Product *p, Memory *memory, ptrdiff_t tile, ptrdiff_t tiles, ptrdiff_t from, ptrdiff_t m)
{
    const Weight *w = &p->w;
    for (ptrdiff_t t = 0; t < tiles; t++) memset(memory->totals[t], 0, sizeof memory->totals[t]);
    for (ptrdiff_t k = 0; k < w->kp; k += K_CHUNK) {
        ptrdiff_t columns = w->kp - k < K_CHUNK ? w->kp - k : K_CHUNK;
        for (ptrdiff_t t = 0; t < tiles; t++) dequantize(w, tile + t, k, columns, memory->weight[t]);
        written();
        for (ptrdiff_t t = 0; t < tiles; t += 2) {
            for (ptrdiff_t i = 0; i < m; i += 2 * M_TILE)
                multiply_four(p->tiles + (from + i) * w->kp + k * M_TILE, M_TILE * w->kp, columns / K_TILE,
                              memory->weight[t], memory->weight[t + 1], memory->totals[t] + i * ROWS,
                              memory->totals[t + 1] + i * ROWS);
        }
    }
    for (ptrdiff_t t = 0; t < tiles; t++)
        for (ptrdiff_t i = 0; i < m; i++)
            store_bf16(p, from + i, tile + t, _mm512_load_ps(memory->totals[t] + i * ROWS));
}

static TARGET void multiply(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    static _Thread_local Memory memory;
    const Product *p = pointer;
    uint8_t before[64];
    _tile_storeconfig(before);
    configure(6, M_TILE, 16, 4, 64);
    for (ptrdiff_t from = 0; from < p->m; from += M_CHUNK) {
        ptrdiff_t m = p->m - from < M_CHUNK ? p->m - from : M_CHUNK;
        for (ptrdiff_t tile = first; tile < last; tile += TILES)
            block(p, &memory, tile, last - tile < TILES ? last - tile : TILES, from, m);
    }
    restore(before);
}

const Method bf16_amx_large = {prepare_tiles, multiply, TILES, TILES, sizeof(uint16_t), 0, 0};
#endif
