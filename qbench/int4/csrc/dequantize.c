/* A range of a weight as a matrix [rows, kp] of bfloat16 or float32, for products large enough to pay for it. */
#include "qint4.h"

#include <string.h>

static void dequantize_generic(const Weight *w, ptrdiff_t tile, int to_bf16, void *out)
{
    static const int nibble[BLOCK] = {0, 4, 1, 5, 2, 6, 3, 7};
    for (ptrdiff_t k = 0; k < w->kp; k += K_ALIGN) {
        const uint16_t *scales = scales_at(w, tile, k);
        float s[ROWS], z[ROWS];
        load_scales(w, scales, s);
        load_scales(w, scales + ROWS, z);
        const uint32_t *words = words_at(w, tile, k);
        for (int row = 0; row < ROWS; row++)
            for (int i = 0; i < K_ALIGN; i++) {
                const uint32_t *of_row = words + row;
                uint32_t code = w->bits == 3 ? CODE_OF_3(of_row[0], of_row[ROWS], of_row[2 * ROWS], i)
                                             : of_row[i / BLOCK * ROWS] >> 4 * nibble[i % BLOCK] & 15;
                float value = s[row] * (float)((int)code - middle_of(w)) + z[row];
                ptrdiff_t at = row * w->kp + k + i;
                if (to_bf16) ((uint16_t *)out)[at] = float_to_bf16(value);
                else ((float *)out)[at] = value;
            }
    }
}

#if defined(__x86_64__)
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))
#include "avx512.h"

/* pairs[c]: of 16 rows, columns (2 c, 2 c + 1) of 8 as bfloat16. */
INLINE void dequantize_block(const uint32_t *words, __m512 s, __m512 z, __m512i pairs[4])
{
    const __m512 codes = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    __m512i word = _mm512_load_si512(words);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        __m512 even = _mm512_permutexvar_ps(_mm512_srli_epi32(word, (unsigned)(4 * c)), codes);
        __m512 odd = _mm512_permutexvar_ps(_mm512_srli_epi32(word, (unsigned)(16 + 4 * c)), codes);
        __m512i low = _mm512_srli_epi32(rounded_bf16(_mm512_fmadd_ps(s, even, z)), 16);
        pairs[c] = _mm512_mask_blend_epi16(0xaaaaaaaa, low, rounded_bf16(_mm512_fmadd_ps(s, odd, z)));
    }
}

/* v[i] holds 128 bits of rows 4 lane + i; a transposition of 4 x 4 words of 32 bits in each lane leads there. */
INLINE void rows_of_block(__m512i v[4])
{
    __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    __m512i c = _mm512_unpacklo_epi32(v[2], v[3]), d = _mm512_unpackhi_epi32(v[2], v[3]);
    v[0] = _mm512_unpacklo_epi64(a, c);
    v[1] = _mm512_unpackhi_epi64(a, c);
    v[2] = _mm512_unpacklo_epi64(b, d);
    v[3] = _mm512_unpackhi_epi64(b, d);
}

/* The same of the four lanes of four vectors. */
INLINE void transpose_lanes(const __m512i v[4], __m512i out[4])
{
    __m512i a = _mm512_shuffle_i32x4(v[0], v[1], 0x44), b = _mm512_shuffle_i32x4(v[0], v[1], 0xee);
    __m512i c = _mm512_shuffle_i32x4(v[2], v[3], 0x44), d = _mm512_shuffle_i32x4(v[2], v[3], 0xee);
    out[0] = _mm512_shuffle_i32x4(a, c, 0x88);
    out[1] = _mm512_shuffle_i32x4(a, c, 0xdd);
    out[2] = _mm512_shuffle_i32x4(b, d, 0x88);
    out[3] = _mm512_shuffle_i32x4(b, d, 0xdd);
}

static TARGET void dequantize_bf16(const Weight *w, ptrdiff_t tile, uint16_t *out)
{
    const uint32_t *words = w->words + tile * w->kp / BLOCK * ROWS;
    for (ptrdiff_t k = 0; k < w->kp; k += K_ALIGN) {
        const uint16_t *scales = scales_at(w, tile, k);
        __m512 s = scales16(w, scales), z = scales16(w, scales + ROWS);
        __m512i blocks[4][4];
        for (int b = 0; b < 4; b++, words += ROWS) {
            dequantize_block(words, s, z, blocks[b]);
            rows_of_block(blocks[b]);
        }
        for (int i = 0; i < 4; i++) {
            const __m512i same[4] = {blocks[0][i], blocks[1][i], blocks[2][i], blocks[3][i]};
            __m512i lines[4];
            transpose_lanes(same, lines);
            for (int lane = 0; lane < 4; lane++)
                _mm512_storeu_si512(out + (4 * lane + i) * w->kp + k, lines[lane]);
        }
    }
}
#endif

typedef struct {
    const Weight *w;
    int level, to_bf16;
    ptrdiff_t from;
    char *out;
} Job;

static void dequantize_tiles(void *pointer, ptrdiff_t first, ptrdiff_t last)
{
    const Job *job = pointer;
    size_t bytes = (size_t)(ROWS * job->w->kp) * (job->to_bf16 ? 2 : 4);
    for (ptrdiff_t tile = first; tile < last; tile++) {
        char *out = job->out + (size_t)tile * bytes;
#if defined(__x86_64__)
        if (job->to_bf16 && job->level >= AVX512) {
            dequantize_bf16(job->w, job->from + tile, (uint16_t *)out);
            continue;
        }
#endif
        dequantize_generic(job->w, job->from + tile, job->to_bf16, out);
    }
}

void qint4_dequantize(const Weight *w, int level, ptrdiff_t first, ptrdiff_t last, int to_bf16, void *out, int threads)
{
    Job job = {w, level, to_bf16, first, out};
    qint4_parallel(dequantize_tiles, &job, last - first, 4, threads);
}
