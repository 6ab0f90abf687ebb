/* Softmax cross-entropy over rows of bfloat16 logits, whose gradient takes their place.

   A row comes from memory once: its maximum, its exponentials and its gradient are three passes
   over what the processor's own cache then holds. Arithmetic is float32. A row is computed by one
   thread in one order, so bits do not depend on threads. A NaN or an infinity among the logits
   makes the row's score NaN, as it does in torch. */
#include "parallel.h"

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>

#define FAST __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))
#define INLINE FAST static inline __attribute__((always_inline))

enum { LANES = 16, CHAINS = 4, STEP = LANES * CHAINS, ROWS = 8 }; /* ROWS: of an item of work */

typedef uint16_t bf16;

typedef struct {
    bf16 *logits;           /* [rows, columns] */
    const int64_t *targets; /* [rows], each within the columns */
    float *scores;          /* [rows]: the targets' log-likelihoods */
    long rows, columns;
    float scale;            /* of the gradient; 0 where none is wanted */
    float *scratch;         /* a row of exponentials for each thread */
    long stride;            /* from one of these to the next */
} Call;

/* A vector of logits, of which the first `left` are there; the others are minus infinity. */
INLINE __m512 load(const bf16 *from, long left)
{
    __mmask16 there = left >= LANES ? 0xffff : (__mmask16)((1u << (left > 0 ? left : 0)) - 1);
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(there, from));
    __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), there, value);
}

/* 2^x to a relative 2e-7 where x is at most 0, NaN where it is NaN. The polynomial is 2^f's over
   [-0.5, 0.5], of least relative error (9e-8) among those of degree 5 that begin with 1. */
INLINE __m512 power_of_two(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-200.0f), x); /* of NaN and a number: the second */
    __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 f = _mm512_sub_ps(x, whole);
    __m512 p = _mm512_set1_ps(0.00132647272f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.00967151269f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0555073374f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.240222421f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.693146978f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
}

FAST static float maximum(const bf16 *row, long columns)
{
    __m512 highest[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        highest[i] = _mm512_set1_ps(-INFINITY);
    for (long j = 0; j < columns; j += STEP)
        for (int i = 0; i < CHAINS; i++)
            highest[i] = _mm512_max_ps(highest[i], load(row + j + i * LANES, columns - j - i * LANES));
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(highest[0], highest[1]),
                                              _mm512_max_ps(highest[2], highest[3])));
}

/* The row's sum of 2^(slope x + shift), the terms going to `terms`. */
FAST static float exponentials(const bf16 *row, float *terms, long columns, float slope, float shift)
{
    __m512 sums[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        sums[i] = _mm512_setzero_ps();
    for (long j = 0; j < columns; j += STEP)
        for (int i = 0; i < CHAINS; i++) {
            __m512 x = load(row + j + i * LANES, columns - j - i * LANES);
            __m512 term = power_of_two(
                _mm512_fmadd_ps(x, _mm512_set1_ps(slope), _mm512_set1_ps(shift)));
            _mm512_store_ps(terms + j + i * LANES, term);
            sums[i] = _mm512_add_ps(sums[i], term);
        }
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

FAST static void scaled(bf16 *row, const float *terms, long columns, float factor)
{
    for (long j = 0; j < columns; j += LANES) {
        long left = columns - j;
        __mmask16 there = left >= LANES ? 0xffff : (__mmask16)((1u << left) - 1);
        __m512 value = _mm512_mul_ps(_mm512_load_ps(terms + j), _mm512_set1_ps(factor));
        _mm256_mask_storeu_epi16(row + j, there, (__m256i)_mm512_cvtneps_pbh(value));
    }
}

FAST static void few_rows(void *context, long item, int thread)
{
    const float log2_of_e = 1.44269504f, log_of_2 = 0.693147181f;
    const Call *call = context;
    float *terms = call->scratch + thread * call->stride;
    long end = item * ROWS + ROWS < call->rows ? item * ROWS + ROWS : call->rows;
    for (long i = item * ROWS; i < end; i++) {
        bf16 *row = call->logits + i * call->columns;
        int64_t target = call->targets[i];
        uint32_t bits = (uint32_t)row[target] << 16;
        float chosen = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)bits)));
        float shift = -maximum(row, call->columns) * log2_of_e;
        float sum = exponentials(row, terms, call->columns, log2_of_e, shift);
        call->scores[i] = (fmaf(chosen, log2_of_e, shift) - log2f(sum)) * log_of_2;
        if (call->scale != 0) {
            terms[target] -= sum;
            scaled(row, terms, call->columns, call->scale / sum);
        }
    }
}

int loss_version(void)
{
    return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") ? 1 : 0;
}

/* 0, or -1 where there is no memory for a row of float32 for each thread. */
int loss_rows(bf16 *logits, const int64_t *targets, float *scores, long rows, long columns,
              float scale, int num_threads)
{
    Call call = {logits, targets, scores, rows, columns, scale, 0, (columns + STEP - 1) / STEP * STEP};
    call.scratch = aligned_alloc(64, sizeof(float) * (size_t)call.stride * (size_t)num_threads);
    if (!call.scratch)
        return -1;
    parallel(few_rows, &call, (rows + ROWS - 1) / ROWS, num_threads);
    free(call.scratch);
    return 0;
}

#else

int loss_version(void)
{
    return 0;
}

#endif
