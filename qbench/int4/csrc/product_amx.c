/* The product with AMX for some rows of x: codes are multiplied, and scales applied to the results.

   A table of 32 entries turns the low 5 bits of a 16-bit lane into q - 8 as bfloat16, which is exact; the fifth bit is
   the next nibble's, and the table repeats itself for it. Codes of a segment are looked up into the first cache, where
   AMX reads them, while it works on the segment before. A tile register cannot be scaled, so the float32 results of a segment are
   stored and scaled in memory. Results of AMX are late by some 50 cycles: four chains of them run side by side, of 4
   tiles of the weight with up to 16 rows of x, or of 2 with up to 32. */
#include "qint4.h"

#if defined(__x86_64__)
#include "amx_bf16.h"

enum { TILES = 4, M_MAX = 128 };

typedef struct {
    _Alignas(64) __m512i codes[2][TILES][MAX_SEGMENT / 2];
    _Alignas(64) float results[TILES][2 * M_TILE * ROWS]; /* [tile][row of x][row of the weight] */
    _Alignas(64) float totals[TILES][M_MAX * ROWS];
} Memory;

/* Codes of the columns [k, k + 32) of some tiles, to the places of step `step` of a segment. */
INLINE void look_up(const Product *p, ptrdiff_t tile, int tiles, ptrdiff_t k, ptrdiff_t step,
                    __m512i codes[][MAX_SEGMENT / 2])
{
    const __m512i table = _mm512_broadcast_i64x4(_mm256_setr_epi16(
        (short)0xc100, (short)0xc0e0, (short)0xc0c0, (short)0xc0a0, (short)0xc080, (short)0xc040, (short)0xc000,
        (short)0xbf80, 0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0));
    for (int t = 0; t < tiles; t++) {
        const uint32_t *word = p->w.words + ((tile + t) * p->w.kp + k) / BLOCK * ROWS;
#pragma GCC unroll 4
        for (int b = 0; b < K_TILE / BLOCK; b++, word += ROWS) {
            __m512i packed = _mm512_load_si512(word);
            _mm_prefetch((const char *)word + AHEAD, _MM_HINT_T0);
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++)
                codes[t][16 * step + 4 * b + c] =
                    _mm512_permutexvar_epi16(_mm512_srli_epi16(packed, (unsigned)(4 * c)), table);
        }
    }
}

/* A segment of x, and where the codes of the segment after it are to be looked up meanwhile. */
typedef struct {
    const Product *p;
    ptrdiff_t tile, next_k, next_steps; /* no steps: nothing is to be looked up */
    __m512i (*next)[MAX_SEGMENT / 2];
} Ahead;

/* One tile of x by up to 4 of the weight. */
INLINE void multiply_narrow(const uint16_t *x, ptrdiff_t steps, int tiles, __m512i codes[][MAX_SEGMENT / 2],
                            Ahead ahead, float results[][2 * M_TILE * ROWS])
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (ptrdiff_t j = 0; j < steps; j++, x += TILE) {
        if (j < ahead.next_steps) look_up(ahead.p, ahead.tile, tiles, ahead.next_k + j * K_TILE, j, ahead.next);
        written();
        _tile_loadd(4, x, 64);
        _tile_loadd(5, &codes[0][16 * j], 64);
        _tile_dpbf16ps(0, 4, 5);
        if (tiles < 4) continue;
        _tile_loadd(6, &codes[1][16 * j], 64);
        _tile_dpbf16ps(1, 4, 6);
        _tile_loadd(7, &codes[2][16 * j], 64);
        _tile_dpbf16ps(2, 4, 7);
        _tile_loadd(5, &codes[3][16 * j], 64);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, results[0], 64);
    if (tiles < 4) return;
    _tile_stored(1, results[1], 64);
    _tile_stored(2, results[2], 64);
    _tile_stored(3, results[3], 64);
}

/* Two tiles of x, `stride` elements apart, by up to 2 of the weight; register 4 is for x, too. */
INLINE void multiply_wide(const uint16_t *x, ptrdiff_t stride, ptrdiff_t steps, int tiles,
                          __m512i codes[][MAX_SEGMENT / 2], Ahead ahead, float results[][2 * M_TILE * ROWS])
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (ptrdiff_t j = 0; j < steps; j++, x += TILE) {
        if (j < ahead.next_steps) look_up(ahead.p, ahead.tile, tiles, ahead.next_k + j * K_TILE, j, ahead.next);
        written();
        _tile_loadd(4, x, 64);
        _tile_loadd(6, &codes[0][16 * j], 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, x + stride, 64);
        _tile_dpbf16ps(2, 5, 6);
        if (tiles < 2) continue;
        _tile_loadd(7, &codes[1][16 * j], 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, results[0], 64);
    _tile_stored(2, results[0] + TILE / 2, 64);
    if (tiles < 2) return;
    _tile_stored(1, results[1], 64);
    _tile_stored(3, results[1] + TILE / 2, 64);
}

/* totals += s results + z sums, for `m` rows of x from `row` on. */
INLINE void scale(const Product *p, ptrdiff_t tile, ptrdiff_t g, ptrdiff_t row, ptrdiff_t m, const float *results,
                  float *totals)
{
    const uint16_t *scales = scales_at(&p->w, tile, g * p->segment);
    const float *sums = p->sums + row * p->segments + g;
    __m512 s = scales16(&p->w, scales), z = scales16(&p->w, scales + ROWS);
    for (ptrdiff_t i = 0; i < m; i++) {
        __m512 total = _mm512_load_ps(totals + i * ROWS);
        total = _mm512_fmadd_ps(z, _mm512_set1_ps(sums[i * p->segments]), total);
        _mm512_store_ps(totals + i * ROWS, _mm512_fmadd_ps(s, _mm512_load_ps(results + i * ROWS), total));
    }
}

/* `tiles` of the weight, a constant after inlining, by `m` rows of x from row `from` on. */
INLINE void tiles_of(const Product *p, Memory *memory, ptrdiff_t tile, int tiles, ptrdiff_t from, ptrdiff_t m)
{
    for (int t = 0; t < tiles; t++) memset(memory->totals[t], 0, (size_t)(m * ROWS) * sizeof(float));
    for (ptrdiff_t j = 0; j < segment_columns(p, 0) / K_TILE; j++)
        look_up(p, tile, tiles, j * K_TILE, j, memory->codes[0]);
    for (ptrdiff_t g = 0; g < p->segments; g++) {
        ptrdiff_t steps = segment_columns(p, g) / K_TILE;
        ptrdiff_t next_steps = g + 1 < p->segments ? segment_columns(p, g + 1) / K_TILE : 0;
        Ahead ahead = {p, tile, (g + 1) * p->segment, next_steps, memory->codes[(g + 1) % 2]};
        for (ptrdiff_t i = 0; i < m; i += 2 * M_TILE) {
            ptrdiff_t rows = m - i < 2 * M_TILE ? m - i : 2 * M_TILE;
            const uint16_t *x = p->tiles + (from + i) * p->w.kp + g * p->segment * M_TILE;
            if (m <= M_TILE) multiply_narrow(x, steps, tiles, memory->codes[g % 2], ahead, memory->results);
            else multiply_wide(x, M_TILE * p->w.kp, steps, tiles, memory->codes[g % 2], ahead, memory->results);
            ahead.next_steps = 0;
            for (int t = 0; t < tiles; t++)
                scale(p, tile + t, g, from + i, rows, memory->results[t], memory->totals[t] + i * ROWS);
        }
    }
    for (int t = 0; t < tiles; t++)
        for (ptrdiff_t i = 0; i < m; i++)
            store_bf16(p, from + i, tile + t, _mm512_load_ps(memory->totals[t] + i * ROWS));
}

static TARGET void multiply(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    static _Thread_local Memory memory;
    const Product *p = pointer;
    uint8_t before[64];
    _tile_storeconfig(before);
    for (ptrdiff_t from = 0; from < p->m; from += M_MAX) {
        ptrdiff_t m = p->m - from < M_MAX ? p->m - from : M_MAX, tile = first;
        configure(m <= M_TILE ? 5 : 6, m < M_TILE ? (int)m : M_TILE, 16, 4, 64);
        if (m <= M_TILE)
            for (; tile + 4 <= last; tile += 4) tiles_of(p, &memory, tile, 4, from, m);
        else
            for (; tile + 2 <= last; tile += 2) tiles_of(p, &memory, tile, 2, from, m);
        for (; tile < last; tile++) tiles_of(p, &memory, tile, 1, from, m);
    }
    restore(before);
}

const Method bf16_amx = {prepare_tiles, multiply, 4, 4, sizeof(uint16_t), 0, 0};
#endif
