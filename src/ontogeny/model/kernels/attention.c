/* Causal attention in bfloat16, forward and backward, on AVX-512's bfloat16 products.

   Blocks of 64 queries against blocks of 64 keys, with the softmax kept online in float32 and the
   probabilities computed again in the backward pass (Dao et al. 2022). Scores stand transposed, a
   row a key and a lane a query: so the maximum and the sum over keys need no shuffles, and what is
   rounded to bfloat16 is at once an operand of the next product. The rotation of queries and keys
   happens as they are read, and is undone as their gradients are written.

   A product is C[m][n] += sum over k of A[m][k] B[k][n], where A and B hold pairs along k, two
   bfloat16 in 32 bits. B[T, H, 3D] of inputs and B[T, H, D] of outputs are as torch has them.
   Heads are independent and each is computed by one thread, so bits do not depend on threads. */
#include "parallel.h"

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)

#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FAST __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INLINE FAST static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

enum { LANES = 16, BLOCK = 64, VECTORS = BLOCK / LANES, PAIRS = BLOCK / 2, FORWARD = 1, BACK = -1 };

typedef uint16_t bf16;
typedef uint32_t __attribute__((may_alias)) pair;

typedef struct {
    const bf16 *qkv, *cos, *sin;    /* [B, T, H, 3D], [T, R], [T, R] */
    bf16 *out;                      /* [B, T, H, D] */
    float *statistics;              /* [B, H, 2, T]: highest score and log2 of the sum, base 2 */
    const bf16 *d_out;              /* [B, T, H, D] */
    bf16 *d_qkv;                    /* [B, T, H, 3D] */
    long time, heads, size, rotary; /* T, H, D, R */
    long bytes;                     /* of a thread's scratch */
    char *scratch;
} Call;

/* ---- products ---- */

/* sums[M][N] += A[M][K] B[K][N]; M and N are constants. */
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

INLINE void add_strip(float *c, long ldc, int M, int N, const pair *a, long lda, const pair *b,
                      long ldb, long rows, long K)
{
    for (; rows > 0; rows -= M, a += M * lda, c += M * ldc) {
        __m512 sums[16];
        UNROLL for (int m = 0; m < M; m++)
            UNROLL for (int n = 0; n < N; n++)
                sums[m * N + n] = _mm512_loadu_ps(c + m * ldc + n * LANES);
        multiply(sums, M, N, a, lda, b, ldb, K);
        UNROLL for (int m = 0; m < M; m++)
            UNROLL for (int n = 0; n < N; n++)
                _mm512_storeu_ps(c + m * ldc + n * LANES, sums[m * N + n]);
    }
}

/* C[rows][16 vectors] += A[rows][K] B[K][16 vectors]; rows are a multiple of 8. */
FAST static void add_product(float *c, long ldc, const pair *a, long lda, const pair *b, long ldb,
                             long rows, long vectors, long K)
{
    for (; vectors >= 4; vectors -= 4, b += 4 * LANES, c += 4 * LANES)
        add_strip(c, ldc, 4, 4, a, lda, b, ldb, rows, K);
    if (vectors == 3)
        add_strip(c, ldc, 4, 3, a, lda, b, ldb, rows, K);
    else if (vectors == 2)
        add_strip(c, ldc, 8, 2, a, lda, b, ldb, rows, K);
    else if (vectors == 1)
        add_strip(c, ldc, 8, 1, a, lda, b, ldb, rows, K);
}

/* As add_product for a block of queries against the block of keys at its side: the lanes of vector
   n end at key 16 (n + 1). */
FAST static void add_visible(float *c, const pair *a, const pair *b, long rows, int is_diagonal)
{
    if (!is_diagonal)
        add_product(c, BLOCK, a, PAIRS, b, BLOCK, rows, VECTORS, PAIRS);
    else
        for (int n = 0; n < VECTORS; n++)
            add_product(c + n * LANES, BLOCK, a, PAIRS, b + n * LANES, BLOCK, rows, 1,
                        (n + 1) * LANES / 2);
}

/* ---- numbers ---- */

/* 2^x for x up to about 0, to 2e-7 of it; exactly 0 below -150; NaN stays. */
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

/* Two vectors as pairs: lane i holds low[i] and high[i]. */
INLINE __m512i pairs_of(__m512 low, __m512 high)
{
    const __m512i order = _mm512_set_epi32(
        0x1f000f, 0x1e000e, 0x1d000d, 0x1c000c, 0x1b000b, 0x1a000a, 0x190009, 0x180008, 0x170007,
        0x160006, 0x150005, 0x140004, 0x130003, 0x120002, 0x110001, 0x100000);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(high, low));
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

INLINE __mmask16 first(long count)
{
    return count >= LANES ? 0xffff : (__mmask16)((1u << count) - 1);
}

/* ---- layouts ---- */

/* to[columns][16] from from[16][columns], at most 16 of them. */
FAST static void transpose_tile(pair *to, long ldt, const pair *from, long ldf, long columns)
{
    __m512i r[16], t[16];
    UNROLL for (int i = 0; i < 16; i++)
        r[i] = _mm512_maskz_loadu_epi32(first(columns), from + i * ldf);
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

/* to[columns][rows] from from[rows][columns]; rows are a multiple of 16. */
FAST static void transpose(pair *to, const pair *from, long rows, long columns)
{
    for (long i = 0; i < rows; i += LANES)
        for (long j = 0; j < columns; j += LANES)
            transpose_tile(to + j * rows + i, rows, from + i * columns + j, columns,
                           columns - j < LANES ? columns - j : LANES);
}

/* to[32][D] pairs along the rows of from[64][D]. */
FAST static void pair_rows(pair *to, const bf16 *from, long size)
{
    for (long i = 0; i < BLOCK; i += 2, from += 2 * size, to += size)
        for (long j = 0; j < size; j += LANES) {
            __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((void *)(from + j)));
            __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((void *)(from + size + j)));
            _mm512_storeu_si512(to + j, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
}

/* Turns x[R] in planes (j, j + R/2), by the angle of row t or back by it. */
FAST static void turn(float *x, const Call *call, long t, int way)
{
    long half = call->rotary / 2;
    for (long j = 0; j < half; j += LANES) {
        __mmask16 mask = first(half - j);
        __m512 a = _mm512_maskz_loadu_ps(mask, x + j);
        __m512 b = _mm512_maskz_loadu_ps(mask, x + half + j);
        __m512 c = load_bf16(call->cos + t * call->rotary + j, mask);
        __m512 s = load_bf16(call->sin + t * call->rotary + j, mask);
        s = _mm512_mul_ps(s, _mm512_set1_ps((float)way));
        _mm512_mask_storeu_ps(x + j, mask, _mm512_fnmadd_ps(b, s, _mm512_mul_ps(a, c)));
        _mm512_mask_storeu_ps(x + half + j, mask, _mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)));
    }
}

static long rows_of(const Call *call, long block)
{
    long left = call->time - block * BLOCK;
    return left < BLOCK ? left : BLOCK;
}

/* to[64][D]: a block's rows, `stride` apart, turned if asked; zeros past the last. */
FAST static void read_rows(bf16 *to, const bf16 *from, long stride, const Call *call, long block,
                           int is_turned)
{
    long size = call->size, rows = rows_of(call, block), rotary = is_turned ? call->rotary : 0;
    float x[256];
    from += block * BLOCK * stride;
    for (long i = 0; i < rows; i++, from += stride, to += size) {
        memcpy(to, from, (size_t)size * sizeof(bf16));
        for (long j = 0; j < rotary; j += LANES)
            _mm512_storeu_ps(x + j, load_bf16(from + j, 0xffff));
        if (rotary)
            turn(x, call, block * BLOCK + i, FORWARD);
        for (long j = 0; j < rotary; j += LANES)
            store_bf16(to + j, _mm512_loadu_ps(x + j), first(rotary - j));
    }
    memset(to, 0, (size_t)((BLOCK - rows) * size) * sizeof(bf16));
}

/* Writes from[64][D] times `scale`, turned back if asked, to a block's rows, `stride` apart. */
FAST static void write_rows(bf16 *to, long stride, float *from, float scale, const Call *call,
                            long block, int is_turned)
{
    long size = call->size, rows = rows_of(call, block);
    __m512 factor = _mm512_set1_ps(scale);
    to += block * BLOCK * stride;
    for (long i = 0; i < rows; i++, to += stride, from += size) {
        if (is_turned)
            turn(from, call, block * BLOCK + i, BACK);
        for (long j = 0; j < size; j += LANES)
            store_bf16(to + j, _mm512_mul_ps(factor, _mm512_loadu_ps(from + j)), 0xffff);
    }
}

/* A place of `bytes` in a thread's scratch. */
static void *take(char **scratch, long bytes)
{
    void *place = *scratch;
    *scratch += bytes;
    return place;
}

static float scale_of(const Call *call)
{
    return 1.0f / sqrtf((float)call->size);
}

/* ---- forward ---- */

typedef struct {
    __m512 highest[VECTORS], sum[VECTORS]; /* of the scores so far, and of 2^(score - highest) */
    float scores[BLOCK * BLOCK];           /* [key][query] */
    pair weights[PAIRS * BLOCK];           /* [pair of keys][query] */
    float *out;                            /* [D][query], not yet over the sum */
} Queries;

/* Scores of 4 keys from `key` on, for the vectors from the `start`th on. */
INLINE void score_strip(Queries *q, const pair *keys, const pair *queries, long size, int key,
                        int start, int is_diagonal, __m512 *highest)
{
    const int N = VECTORS - start;
    __m512 sums[16];
    UNROLL for (int i = 0; i < 4 * N; i++)
        sums[i] = _mm512_setzero_ps();
    multiply(sums, 4, N, keys + key * size / 2, size / 2, queries + start * LANES, BLOCK, size / 2);
    UNROLL for (int m = 0; m < 4; m++)
        UNROLL for (int n = 0; n < N; n++) {
            __m512 x = sums[m * N + n];
            if (is_diagonal && n == 0)
                x = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY),
                                       (__mmask16)(0xffff << (key + m) % LANES), x);
            highest[start + n] = _mm512_max_ps(highest[start + n], x);
            _mm512_storeu_ps(q->scores + (key + m) * BLOCK + (start + n) * LANES, x);
        }
}

/* All scores of a block, and the highest of each query among them. */
FAST static void score(Queries *q, const pair *keys, const pair *queries, long size,
                       int is_diagonal, __m512 *highest)
{
    for (int n = 0; n < VECTORS; n++)
        highest[n] = _mm512_set1_ps(-FLT_MAX);
    for (int key = 0; key < BLOCK; key += 4)
        switch (is_diagonal ? key / LANES : -1) {
        case -1: score_strip(q, keys, queries, size, key, 0, 0, highest); break;
        case 0: score_strip(q, keys, queries, size, key, 0, 1, highest); break;
        case 1: score_strip(q, keys, queries, size, key, 1, 1, highest); break;
        case 2: score_strip(q, keys, queries, size, key, 2, 1, highest); break;
        default: score_strip(q, keys, queries, size, key, 3, 1, highest);
        }
}

/* Takes a block of keys and values into what the queries have seen. */
FAST static void see(Queries *q, const pair *keys, const pair *values, const pair *queries,
                     const Call *call, int is_diagonal)
{
    __m512 highest[VECTORS], scale = _mm512_set1_ps(scale_of(call) * 1.44269504f);
    score(q, keys, queries, call->size, is_diagonal, highest);
    for (int n = 0; n < VECTORS; n++) {
        __m512 now = _mm512_max_ps(q->highest[n], _mm512_mul_ps(highest[n], scale));
        __m512 shrunk = exp2_of(_mm512_sub_ps(q->highest[n], now));
        __m512 low, high, sum = _mm512_mul_ps(q->sum[n], shrunk);
        for (long d = 0; d < call->size; d++) {
            float *at = q->out + d * BLOCK + n * LANES;
            _mm512_storeu_ps(at, _mm512_mul_ps(shrunk, _mm512_loadu_ps(at)));
        }
        for (int k = 0; k < (is_diagonal ? (n + 1) * LANES : BLOCK); k += 2) {
            const float *at = q->scores + k * BLOCK + n * LANES;
            low = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(at), scale, now));
            high = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(at + BLOCK), scale, now));
            sum = _mm512_add_ps(sum, _mm512_add_ps(low, high));
            _mm512_storeu_si512(q->weights + k / 2 * BLOCK + n * LANES, pairs_of(low, high));
        }
        q->highest[n] = now;
        q->sum[n] = sum;
    }
    add_visible(q->out, values, q->weights, call->size, is_diagonal);
}

/* Writes the rows of a block of queries that have seen all they may. */
FAST static void finish(Queries *q, float *rows, bf16 *out, float *statistics, const Call *call,
                        long block)
{
    for (int n = 0; n < VECTORS; n++) {
        long start = block * BLOCK + n * LANES;
        __mmask16 mask = start < call->time ? first(call->time - start) : 0;
        __m512 share = _mm512_div_ps(_mm512_set1_ps(1.0f), q->sum[n]);
        _mm512_mask_storeu_ps(statistics + start, mask, q->highest[n]);
        _mm512_mask_storeu_ps(statistics + call->time + start, mask, log2_of(q->sum[n]));
        for (long d = 0; d < call->size; d++) {
            float *at = q->out + d * BLOCK + n * LANES;
            _mm512_storeu_ps(at, _mm512_mul_ps(share, _mm512_loadu_ps(at)));
        }
    }
    transpose((pair *)rows, (pair *)q->out, call->size, BLOCK);
    write_rows(out, call->heads * call->size, rows, 1.0f, call, block, 0);
}

static long forward_bytes(long blocks, long size)
{
    return (long)sizeof(Queries) + (2 * blocks + 7) * BLOCK * size * (long)sizeof(bf16);
}

FAST static void forward(void *context, long item, int thread)
{
    const Call *call = context;
    long size = call->size, heads = call->heads, blocks = (call->time + BLOCK - 1) / BLOCK;
    long width = 3 * heads * size, block_pairs = PAIRS * size, bytes = BLOCK * size * 2;
    const bf16 *from = call->qkv + item / heads * call->time * width + item % heads * 3 * size;
    bf16 *out = call->out + item / heads * call->time * heads * size + item % heads * size;
    char *place = call->scratch + thread * call->bytes;
    Queries *q = take(&place, sizeof(Queries));
    pair *keys = take(&place, blocks * bytes), *values = take(&place, blocks * bytes);
    pair *queries = take(&place, bytes), *paired = take(&place, bytes);
    bf16 *rows = take(&place, bytes);
    float *out_rows = take(&place, 2 * bytes);
    q->out = take(&place, 2 * bytes);
    for (long i = 0; i < blocks; i++) {
        read_rows((bf16 *)(keys + i * block_pairs), from + size, width, call, i, 1);
        read_rows(rows, from + 2 * size, width, call, i, 0);
        pair_rows(paired, rows, size);
        transpose(values + i * block_pairs, paired, PAIRS, size);
    }
    for (long i = 0; i < blocks; i++) {
        read_rows(rows, from, width, call, i, 1);
        transpose(queries, (pair *)rows, BLOCK, size / 2);
        for (int n = 0; n < VECTORS; n++) {
            q->highest[n] = _mm512_set1_ps(-FLT_MAX);
            q->sum[n] = _mm512_setzero_ps();
        }
        memset(q->out, 0, (size_t)(2 * bytes));
        for (long j = 0; j <= i; j++)
            see(q, keys + j * block_pairs, values + j * block_pairs, queries, call, j == i);
        finish(q, out_rows, out, call->statistics + item * 2 * call->time, call, i);
    }
}

/* ---- backward ---- */

typedef struct {
    bf16 weights[BLOCK * BLOCK], d_scores[BLOCK * BLOCK]; /* [key][query] */
    pair d_score_pairs[PAIRS * BLOCK];                    /* [pair of keys][query] */
    const pair *keys, *values;                            /* [key][D] as pairs */
    const pair *queries, *d_out;                          /* [D as pairs][query] */
    const float *highest, *log_sum, *delta;               /* [query] */
    __m512 scale;
} Meeting;

/* The weights of 4 keys from `key` on and the gradients of their scores. */
INLINE void meet_strip(Meeting *at, long size, int key, int start, int is_diagonal)
{
    const int N = VECTORS - start;
    __m512 p[16], d[16];
    UNROLL for (int i = 0; i < 4 * N; i++)
        p[i] = d[i] = _mm512_setzero_ps();
    multiply(p, 4, N, at->keys + key * size / 2, size / 2, at->queries + start * LANES, BLOCK,
             size / 2);
    UNROLL for (int n = 0; n < N; n++) {
        __m512 highest = _mm512_loadu_ps(at->highest + (start + n) * LANES);
        __m512 log_sum = _mm512_loadu_ps(at->log_sum + (start + n) * LANES);
        UNROLL for (int m = 0; m < 4; m++) {
            __m512 *x = &p[m * N + n];
            *x = exp2_of(_mm512_sub_ps(_mm512_fmsub_ps(*x, at->scale, highest), log_sum));
            if (is_diagonal && n == 0)
                *x = _mm512_maskz_mov_ps((__mmask16)(0xffff << (key + m) % LANES), *x);
            store_bf16(at->weights + (key + m) * BLOCK + (start + n) * LANES, *x, 0xffff);
        }
    }
    multiply(d, 4, N, at->values + key * size / 2, size / 2, at->d_out + start * LANES, BLOCK,
             size / 2);
    UNROLL for (int n = 0; n < N; n++) {
        __m512 delta = _mm512_loadu_ps(at->delta + (start + n) * LANES);
        UNROLL for (int m = 0; m < 4; m++) {
            __m512 *x = &d[m * N + n];
            *x = _mm512_mul_ps(p[m * N + n], _mm512_sub_ps(*x, delta));
            store_bf16(at->d_scores + (key + m) * BLOCK + (start + n) * LANES, *x, 0xffff);
        }
        UNROLL for (int m = 0; m < 4; m += 2)
            _mm512_storeu_si512(at->d_score_pairs + (key + m) / 2 * BLOCK + (start + n) * LANES,
                                pairs_of(d[m * N + n], d[(m + 1) * N + n]));
    }
}

FAST static void meet(Meeting *at, long size, int is_diagonal)
{
    for (int key = 0; key < BLOCK; key += 4)
        switch (is_diagonal ? key / LANES : -1) {
        case -1: meet_strip(at, size, key, 0, 0); break;
        case 0: meet_strip(at, size, key, 0, 1); break;
        case 1: meet_strip(at, size, key, 1, 1); break;
        case 2: meet_strip(at, size, key, 2, 1); break;
        default: meet_strip(at, size, key, 3, 1);
        }
}

/* to[key][D] += weights[key][query] from[query][D], the pairs of `from` along the queries. */
FAST static void add_seen(float *to, const bf16 *weights, const pair *from, long size,
                          int is_diagonal)
{
    const pair *a = (const pair *)weights;
    if (!is_diagonal)
        add_product(to, size, a, PAIRS, from, size, BLOCK, size / LANES, PAIRS);
    else
        for (int start = 0; start < BLOCK; start += LANES)
            add_product(to + start * size, size, a + start * PAIRS + start / 2, PAIRS,
                        from + start / 2 * size, size, LANES, size / LANES, (BLOCK - start) / 2);
}

/* What the backward pass needs of every block of queries of a head. */
typedef struct {
    pair *queries, *query_pairs, *d_out, *d_out_pairs; /* [blocks][32 D] */
    float *d_queries;                                  /* [blocks][D][64] */
    float *highest, *log_sum, *delta;                  /* [blocks][64] */
} Asking;

/* Reads the queries of a block, their gradients, and the sum of each gradient times its output. */
FAST static void ask(Asking *to, bf16 *rows, const bf16 *queries, const bf16 *out,
                     const bf16 *d_out, const Call *call, long block)
{
    long size = call->size, width = call->heads * size, place = block * PAIRS * size;
    read_rows(rows, queries, 3 * width, call, block, 1);
    transpose(to->queries + place, (pair *)rows, BLOCK, size / 2);
    pair_rows(to->query_pairs + place, rows, size);
    read_rows(rows, d_out, width, call, block, 0);
    transpose(to->d_out + place, (pair *)rows, BLOCK, size / 2);
    pair_rows(to->d_out_pairs + place, rows, size);
    out += block * BLOCK * width;
    for (long i = 0; i < BLOCK; i++, out += width) {
        __m512 sum = _mm512_setzero_ps();
        for (long j = 0; i < rows_of(call, block) && j < size; j += LANES)
            sum = _mm512_fmadd_ps(load_bf16(rows + i * size + j, 0xffff),
                                  load_bf16(out + j, 0xffff), sum);
        to->delta[block * BLOCK + i] = _mm512_reduce_add_ps(sum);
    }
}

static long backward_bytes(long blocks, long size)
{
    return (long)sizeof(Meeting) + (6 * blocks + 11) * BLOCK * size * (long)sizeof(bf16) +
           3 * blocks * BLOCK * (long)sizeof(float);
}

FAST static void backward(void *context, long item, int thread)
{
    const Call *call = context;
    long size = call->size, heads = call->heads, blocks = (call->time + BLOCK - 1) / BLOCK;
    long width = 3 * heads * size, block_pairs = PAIRS * size, bytes = BLOCK * size * 2;
    long offset = item / heads * call->time * width + item % heads * 3 * size;
    long out_offset = item / heads * call->time * heads * size + item % heads * size;
    const bf16 *from = call->qkv + offset;
    bf16 *to = call->d_qkv + offset;
    char *place = call->scratch + thread * call->bytes;
    Meeting *at = take(&place, sizeof(Meeting));
    Asking all;
    all.queries = take(&place, blocks * bytes);
    all.query_pairs = take(&place, blocks * bytes);
    all.d_out = take(&place, blocks * bytes);
    all.d_out_pairs = take(&place, blocks * bytes);
    all.d_queries = take(&place, 2 * blocks * bytes);
    all.highest = take(&place, blocks * BLOCK * 4);
    all.log_sum = take(&place, blocks * BLOCK * 4);
    all.delta = take(&place, blocks * BLOCK * 4);
    bf16 *rows = take(&place, bytes), *keys = take(&place, bytes), *values = take(&place, bytes);
    pair *paired = take(&place, bytes), *keys_t = take(&place, bytes);
    float *d_keys = take(&place, 2 * bytes), *d_values = take(&place, 2 * bytes);
    float *turned = take(&place, 2 * bytes);
    memset(all.d_queries, 0, (size_t)(2 * blocks * bytes));
    memset(all.highest, 0, (size_t)(2 * blocks * BLOCK) * 4);
    memcpy(all.highest, call->statistics + item * 2 * call->time, (size_t)call->time * 4);
    memcpy(all.log_sum, call->statistics + (item * 2 + 1) * call->time, (size_t)call->time * 4);
    for (long i = 0; i < blocks; i++)
        ask(&all, rows, from, call->out + out_offset, call->d_out + out_offset, call, i);
    at->scale = _mm512_set1_ps(scale_of(call) * 1.44269504f);
    at->keys = (pair *)keys;
    at->values = (pair *)values;
    for (long j = 0; j < blocks; j++) {
        read_rows(keys, from + size, width, call, j, 1);
        read_rows(values, from + 2 * size, width, call, j, 0);
        pair_rows(paired, keys, size);
        transpose(keys_t, paired, PAIRS, size);
        memset(d_keys, 0, (size_t)(2 * bytes));
        memset(d_values, 0, (size_t)(2 * bytes));
        for (long i = j; i < blocks; i++) {
            at->queries = all.queries + i * block_pairs;
            at->d_out = all.d_out + i * block_pairs;
            at->highest = all.highest + i * BLOCK;
            at->log_sum = all.log_sum + i * BLOCK;
            at->delta = all.delta + i * BLOCK;
            meet(at, size, i == j);
            add_seen(d_values, at->weights, all.d_out_pairs + i * block_pairs, size, i == j);
            add_seen(d_keys, at->d_scores, all.query_pairs + i * block_pairs, size, i == j);
            add_visible(all.d_queries + 2 * i * block_pairs, keys_t, at->d_score_pairs, size, i == j);
        }
        write_rows(to + size, width, d_keys, scale_of(call), call, j, 1);
        write_rows(to + 2 * size, width, d_values, 1.0f, call, j, 0);
    }
    for (long i = 0; i < blocks; i++) {
        transpose((pair *)turned, (pair *)(all.d_queries + 2 * i * block_pairs), size, BLOCK);
        write_rows(to, width, turned, scale_of(call), call, i, 1);
    }
}

/* ---- what Python calls ---- */

static int compute(Call *call, void (*task)(void *, long, int), long bytes, long batch,
                   int num_threads)
{
    call->bytes = bytes;
    call->scratch = aligned_alloc(64, (size_t)(bytes * num_threads));
    if (!call->scratch)
        return 1;
    parallel(task, call, batch * call->heads, num_threads);
    free(call->scratch);
    return 0;
}

/* Fills out [B, T, H, D] and statistics [B, H, 2, T]; 1 where there is no memory, else 0.
   `shape` is B, T, H, D, R; all bfloat16 but the statistics, and contiguous. */
int attention_forward(const void *qkv, const void *cos, const void *sin, const long *shape,
                      void *out, float *statistics, int num_threads)
{
    Call call = {.qkv = qkv, .cos = cos, .sin = sin, .out = out, .statistics = statistics,
                 .time = shape[1], .heads = shape[2], .size = shape[3], .rotary = shape[4]};
    long blocks = (call.time + BLOCK - 1) / BLOCK;
    return compute(&call, forward, forward_bytes(blocks, call.size), shape[0], num_threads);
}

/* Fills d_qkv [B, T, H, 3D] from what the forward pass read and filled, and d_out [B, T, H, D]. */
int attention_backward(const void *qkv, const void *cos, const void *sin, const long *shape,
                       void *out, float *statistics, const void *d_out, void *d_qkv,
                       int num_threads)
{
    Call call = {.qkv = qkv, .cos = cos, .sin = sin, .out = out, .statistics = statistics,
                 .d_out = d_out, .d_qkv = d_qkv, .time = shape[1], .heads = shape[2],
                 .size = shape[3], .rotary = shape[4]};
    long blocks = (call.time + BLOCK - 1) / BLOCK;
    return compute(&call, backward, backward_bytes(blocks, call.size), shape[0], num_threads);
}

/* The version of this kernel, 0 where the processor cannot run it. */
int attention_version(void)
{
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}

#else

int attention_version(void)
{
    return 0;
}

#endif
