/* The functions that Python calls. Pointers are those of contiguous tensors; tensors of words are aligned to 64. */
#define _GNU_SOURCE
#include "qint4.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux gives tile registers only to processes that ask. */
static int amx_is_granted(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
    int has_bf16 = d >> 22 & 1, has_tiles = d >> 24 & 1;
    return has_bf16 && has_tiles && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif

/* The best instruction set here. */
int qint4_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return GENERIC;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
        return AVX2;
    if (!__builtin_cpu_supports("avx512vnni")) return AVX512;
    return __builtin_cpu_supports("avx512bf16") && amx_is_granted() ? AMX : AVX512_VNNI;
#else
    return GENERIC;
#endif
}

/* Codes [n][stride] of two a byte, the even column in the low nibble, to words, and back. Padding becomes code 0. */
void qint4_pack(const uint8_t *codes, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t kp, uint32_t *words)
{
    memset(words, 0, (size_t)((n + ROWS - 1) / ROWS * kp / BLOCK * ROWS) * sizeof *words);
    for (ptrdiff_t row = 0; row < n; row++) {
        uint32_t *out = words + row / ROWS * (kp / BLOCK) * ROWS + row % ROWS;
        for (ptrdiff_t i = 0; i < stride; i++) {
            uint32_t byte = codes[row * stride + i];
            out[i / 4 * ROWS] |= (byte & 15) << (4 * (i % 4)) | (byte >> 4) << (16 + 4 * (i % 4));
        }
    }
}

void qint4_unpack(const uint32_t *words, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t kp, uint8_t *codes)
{
    for (ptrdiff_t row = 0; row < n; row++) {
        const uint32_t *from = words + row / ROWS * (kp / BLOCK) * ROWS + row % ROWS;
        for (ptrdiff_t i = 0; i < stride; i++) {
            uint32_t word = from[i / 4 * ROWS] >> (4 * (i % 4));
            codes[row * stride + i] = (uint8_t)((word & 15) | (word >> 16 & 15) << 4);
        }
    }
}

/* Bits of the code of column c of a block of 32 in the words of a row. */
static void put_code_of_3(uint32_t *words, int c, uint32_t code)
{
    const int half = c % 2 * 16;
    if (c < 30) words[c / 10 * ROWS] |= code << (half + c / 2 % 5 * 3);
    else
        for (int bit = 0; bit < 3; bit++) words[bit * ROWS] |= (code >> bit & 1) << (half + 15);
}

/* The same of 3 bits, eight codes in three bytes: a row is a stream of bits, the first column in the lowest. */
void qint4_pack_3(const uint8_t *codes, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t kp, uint32_t *words)
{
    memset(words, 0, (size_t)((n + ROWS - 1) / ROWS * kp / K_ALIGN * 3 * ROWS) * sizeof *words);
    for (ptrdiff_t row = 0; row < n; row++) {
        uint32_t *out = words + row / ROWS * (kp / K_ALIGN) * 3 * ROWS + row % ROWS;
        for (ptrdiff_t i = 0; i < stride / 3; i++) {
            const uint8_t *from = codes + row * stride + 3 * i;
            uint32_t eight = from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16;
            for (int c = 0; c < 8; c++)
                put_code_of_3(out + i / 4 * 3 * ROWS, (int)(i % 4) * 8 + c, eight >> 3 * c & 7);
        }
    }
}

void qint4_unpack_3(const uint32_t *words, ptrdiff_t n, ptrdiff_t stride, ptrdiff_t kp, uint8_t *codes)
{
    for (ptrdiff_t row = 0; row < n; row++) {
        const uint32_t *tile = words + row / ROWS * (kp / K_ALIGN) * 3 * ROWS + row % ROWS;
        for (ptrdiff_t i = 0; i < stride / 3; i++) {
            const uint32_t *from = tile + i / 4 * 3 * ROWS;
            uint32_t eight = 0;
            for (int c = 0; c < 8; c++)
                eight |= CODE_OF_3(from[0], from[ROWS], from[2 * ROWS], (int)(i % 4) * 8 + c) << 3 * c;
            for (int byte = 0; byte < 3; byte++) codes[row * stride + 3 * i + byte] = (uint8_t)(eight >> 8 * byte);
        }
    }
}

static void *scratch(size_t bytes)
{
    static _Thread_local void *memory;
    static _Thread_local size_t size;
    if (bytes > size) {
        free(memory);
        size = (bytes + 63) / 64 * 64;
        memory = aligned_alloc(64, size);
        if (!memory) size = 0;
    }
    return memory;
}

static const Method *method_of(int bits, int level, int is_bf16, ptrdiff_t m)
{
#if defined(__x86_64__)
    enum { AMX_FROM = 3, AMX_FROM_2 = 9, AMX_FROM_3 = 96 }; /* rows of x, as measured */
    if (bits == 4 && is_bf16 && level >= AMX && m >= AMX_FROM)
        return m < AMX_FROM_2 ? &bf16_amx_small : m < AMX_FROM_3 ? &bf16_amx : &bf16_amx_large;
    if (level >= AVX512_VNNI) return &i16_vnni;
    if (level >= AVX2) return &i16_avx2;
#endif
    (void)bits, (void)level, (void)is_bf16, (void)m;
    return &f32_generic;
}

/* Room for what a method makes of x; null without memory. */
static void *prepare_memory(const Method *method, Product *p)
{
    size_t rows = (size_t)((p->m + 31) / 32 * 32), columns = (size_t)p->w.kp;
    size_t per_segment = (size_t)(p->m * p->segments + 15) / 16 * 64;
    char *memory = scratch(3 * per_segment + rows * columns * method->value_bytes);
    if (!memory) return NULL;
    p->sums = (float *)memory;
    p->steps = (float *)(memory + per_segment);
    p->starts = (int32_t *)(memory + 2 * per_segment);
    p->floats = (float *)(memory + 3 * per_segment);
    p->tiles = (uint16_t *)p->floats;
    p->limbs = (int8_t *)p->floats;
    p->integers = (int16_t *)p->floats;
    return memory;
}

/* Tiles that a thread takes at a time. With few rows of x memory decides, and long pieces are read faster; four for
   every thread keep all of them at work. */
static ptrdiff_t piece_of(const Method *method, const Product *p, ptrdiff_t tiles, int threads)
{
    enum { FEW_ROWS = 2 };
    ptrdiff_t piece = tiles / (4 * threads) / method->piece * method->piece;
    if (p->m > FEW_ROWS || piece < method->piece) return method->piece;
    return piece < method->longest ? piece : method->longest;
}

static int multiply(const Method *method, Product *p, int threads)
{
    if (!prepare_memory(method, p)) return 1;
    /* No piece of x may reach across two segments. */
    if (method->limbs_width)
        p->limbs_width = p->w.kp % method->limbs_width || p->segment % method->limbs_width ? K_ALIGN : method->limbs_width;
    qint4_parallel(method->prepare, p, p->m, 8, threads);
    ptrdiff_t tiles = (p->w.n + ROWS - 1) / ROWS;
    qint4_parallel(method->multiply, p, tiles, piece_of(method, p, tiles, threads), threads);
    return 0;
}

/* y [m][n] = x [m][k] times the weight; both bfloat16 (from AVX2 on) or both float32. 0, or 1 without memory. */
int qint4_matmul(const Weight *w, int level, const void *x, void *y, ptrdiff_t m, int is_bf16, ptrdiff_t segment,
                 int threads)
{
    const Method *method = method_of(w->bits, level, is_bf16, m);
    ptrdiff_t bytes = is_bf16 ? 2 : 4, most = method->most_rows ? method->most_rows : m;
    for (ptrdiff_t from = 0; from < m; from += most) {
        Product p = {.w = *w, .x = (const char *)x + from * w->k * bytes, .y = (char *)y + from * w->n * bytes,
                     .is_bf16 = is_bf16, .m = m - from < most ? m - from : most, .segment = segment,
                     .segments = (w->kp + segment - 1) / segment};
        if (multiply(method, &p, threads)) return 1;
    }
    return 0;
}
