/* Products, numbers and layouts of bfloat16 on AVX-512, for the kernels that include it.

   A product is C[m][n] += sum over k of A[m][k] B[k][n] in float32. A and B hold pairs along k, two
   bfloat16 in 32 bits: of A a pair is spread over the lanes, of B a vector holds 16 columns. A large
   B lies in panels, [K][PANEL] one behind another, the last as narrow as what is left. */
#ifndef ONTOGENY_BF16_H
#define ONTOGENY_BF16_H

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_BF16 1

#include <immintrin.h>

#define FAST __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"), unused))
#define INLINE FAST static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { LANES = 16, PANEL = 64, DEPTH = 64 }; /* so many rows of a panel stay in the first cache */

typedef uint16_t bf16;
typedef uint32_t __attribute__((may_alias)) pair;

static inline int bf16_is_supported(void)
{
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

/* ---- numbers ---- */

/* 2^x for x from -126 to about 0, to 2e-7 of it; exactly 0 below -150; a NaN stays one. */
INLINE __m512 exp2_of(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-1000.0f), x); /* in this order a NaN gets through */
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 rest = _mm512_sub_ps(x, whole); /* from -1/2 to 1/2 */
    /* the polynomial of degree 5 whose largest relative error there is least (Remez) */
    __m512 y = _mm512_set1_ps(1.3276472e-3f);
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.67554133e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.55071327e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.40221197e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.93146967e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

/* log2(x) for x from 1, by Newton's method on exp2_of. */
INLINE __m512 log2_of(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f), per_log = _mm512_set1_ps(1.44269504f);
    __m512 y = _mm512_getmant_ps(x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
    y = _mm512_add_ps(_mm512_getexp_ps(x), _mm512_sub_ps(y, one)); /* within 0.09 */
    for (int i = 0; i < 3; i++) {
        __m512 error = _mm512_fmsub_ps(x, exp2_of(_mm512_sub_ps(_mm512_setzero_ps(), y)), one);
        y = _mm512_fmadd_ps(error, per_log, y);
    }
    return y;
}

/* The first `count` lanes. */
INLINE __mmask16 first(long count)
{
    return count >= LANES ? 0xffff : (__mmask16)((1u << count) - 1);
}

INLINE __m512 load_bf16(const bf16 *from, __mmask16 mask)
{
    __m256i bits = _mm256_maskz_loadu_epi16(mask, from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

INLINE void store_bf16(bf16 *to, __m512 x, __mmask16 mask)
{
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(x));
}

/* Two vectors as pairs: lane i holds low[i] and high[i]. */
INLINE __m512i pairs_of(__m512 low, __m512 high)
{
    const __m512i order = _mm512_set_epi32(
        0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008, 0x170007,
        0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* ---- products ---- */

/* sums[M][N vectors] += A[M][K] B[K][N vectors]; M and N are constants, at most 16 sums. */
INLINE void multiply(__m512 *sums, int M, int N, const pair *a, long lda, const pair *b, long ldb,
                     long K)
{
    for (long k = 0; k < K; k++) {
        __m512bh right[4];
        UNROLL for (int n = 0; n < N; n++)
            right[n] = (__m512bh)_mm512_loadu_si512(b + k * ldb + n * LANES);
        UNROLL for (int m = 0; m < M; m++) {
            __m512bh left = (__m512bh)_mm512_set1_epi32((int)a[m * lda + k]);
            UNROLL for (int n = 0; n < N; n++)
                sums[m * N + n] = _mm512_dpbf16_ps(sums[m * N + n], left, right[n]);
        }
    }
}

INLINE void strip(int M, int N, float *c, long ldc, const pair *a, long lda, const pair *b,
                  long ldb, long rows, long K, int is_added)
{
    for (; rows > 0; rows -= M, a += M * lda, c += M * ldc) {
        __m512 sums[16];
        UNROLL for (int i = 0; i < M * N; i++)
            sums[i] = is_added ? _mm512_loadu_ps(c + i / N * ldc + i % N * LANES)
                               : _mm512_setzero_ps();
        multiply(sums, M, N, a, lda, b, ldb, K);
        UNROLL for (int i = 0; i < M * N; i++)
            _mm512_storeu_ps(c + i / N * ldc + i % N * LANES, sums[i]);
    }
}

/* C[rows][vectors] = A[rows][K] B[K][vectors], or is added to; rows are a multiple of 8. */
FAST static void product(float *c, long ldc, const pair *a, long lda, const pair *b, long ldb,
                         long rows, long vectors, long K, int is_added)
{
    for (; vectors >= 4; vectors -= 4, b += 4 * LANES, c += 4 * LANES)
        strip(4, 4, c, ldc, a, lda, b, ldb, rows, K, is_added);
    if (vectors == 3)
        strip(4, 3, c, ldc, a, lda, b, ldb, rows, K, is_added);
    else if (vectors == 2)
        strip(8, 2, c, ldc, a, lda, b, ldb, rows, K, is_added);
    else if (vectors == 1)
        strip(8, 1, c, ldc, a, lda, b, ldb, rows, K, is_added);
}

static inline long smaller(long a, long b)
{
    return a < b ? a : b;
}

/* The same of a B in panels. */
FAST static void product_of_panels(float *c, long ldc, const pair *a, long lda, const pair *b,
                                   long rows, long columns, long K, int is_added)
{
    for (long j = 0; j < columns; j += PANEL) {
        long width = smaller(PANEL, columns - j);
        for (long k = 0; k < K; k += DEPTH)
            product(c + j, ldc, a + k, lda, b + j * K + k * width, width, rows, width / LANES,
                    smaller(DEPTH, K - k), is_added || k > 0);
    }
}

/* Where a number stands in panels of so many rows and columns. */
static inline long place_in_panels(long row, long column, long rows, long columns)
{
    long panel = column / PANEL * PANEL;
    return panel * rows + row * smaller(PANEL, columns - panel) + column - panel;
}

/* ---- layouts ---- */

/* to[columns][16] from from[rows][columns], at most 16 of both; zeros for the rows that lack. */
FAST static void transpose_tile(pair *to, long ldt, const pair *from, long ldf, long rows,
                                long columns)
{
    __m512i r[16], t[16];
    UNROLL for (int i = 0; i < 16; i++)
        r[i] = _mm512_maskz_loadu_epi32(i < rows ? first(columns) : 0, from + i * ldf);
    UNROLL for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) { /* r[4a + i]: rows 4a on, of columns i, 4 + i, ... */
        __m512i even0 = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        __m512i even1 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        __m512i odd0 = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        __m512i odd1 = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
        t[i] = _mm512_shuffle_i32x4(even0, even1, 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(odd0, odd1, 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(even0, even1, 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(odd0, odd1, 0xdd);
    }
    UNROLL for (int i = 0; i < 16; i++)
        if (i < columns)
            _mm512_storeu_si512(to + i * ldt, t[i]);
}

/* to[columns][ldt] from from[rows][columns], zeros from `rows` up to ldt, a multiple of 16. */
FAST static void transpose(pair *to, long ldt, const void *from, long ldf, long rows, long columns)
{
    for (long i = 0; i < ldt; i += LANES)
        for (long j = 0; j < columns; j += LANES)
            transpose_tile(to + j * ldt + i, ldt, (const pair *)from + i * ldf + j, ldf, rows - i,
                           columns - j);
}

/* Asks for a row before it is needed: rows of a head lie pages apart, so nothing foresees them. */
INLINE void fetch_row(const bf16 *row, long size)
{
    for (long j = 0; j < size; j += 32)
        _mm_prefetch((const char *)(row + j), _MM_HINT_T0);
}

/* to[num_pairs][size] pairs along the rows of from[rows][size], and zeros after them. */
FAST static void pair_rows(pair *to, long num_pairs, const bf16 *from, long ldf, long rows,
                           long size)
{
    for (long i = 0; i < 2 * num_pairs; i += 2, from += 2 * ldf, to += size) {
        fetch_row(from + 8 * ldf, size);
        fetch_row(from + 9 * ldf, size);
        for (long j = 0; j < size; j += LANES) {
            __m256i low = _mm256_maskz_loadu_epi16(i < rows ? 0xffff : 0, from + j);
            __m256i high = _mm256_maskz_loadu_epi16(i + 1 < rows ? 0xffff : 0, from + ldf + j);
            __m512i above = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
            _mm512_storeu_si512(to + j, _mm512_or_si512(_mm512_cvtepu16_epi32(low), above));
        }
    }
}

#else
static inline int bf16_is_supported(void)
{
    return 0;
}
#endif
#endif
