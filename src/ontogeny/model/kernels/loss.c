/* Softmax cross-entropy over rows of bfloat16 logits, whose gradient takes their place.

   A row comes from memory once: its maximum, its exponentials and its gradient are three passes
   over what the processor's own cache then holds. Arithmetic is float32. A row is computed by one
   thread in one order, so bits do not depend on threads. A NaN or an infinity among the logits
   makes the row's score NaN, as it does in torch. */
#include "bf16.h"
#include "parallel.h"

#ifdef HAS_BF16

#include <math.h>
#include <stdlib.h>

enum { CHAINS = 4, STEP = LANES * CHAINS, ROWS = 8 }; /* ROWS: of an item of work */

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
    __mmask16 there = first(left > 0 ? left : 0);
    return _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), there, load_bf16(from, there));
}

FAST static float maximum(const bf16 *row, long columns)
{
    __m512 highest[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        highest[i] = _mm512_set1_ps(-INFINITY);
    for (long j = 0; j < columns; j += STEP)
        for (int i = 0; i < CHAINS; i++) {
            long at = j + i * LANES;
            highest[i] = _mm512_max_ps(highest[i], load(row + at, columns - at));
        }
    return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(highest[0], highest[1]),
                                              _mm512_max_ps(highest[2], highest[3])));
}

/* The row's sum of 2^(slope x + shift), whose terms go to `terms`. */
FAST static float exponentials(const bf16 *row, float *terms, long columns, float slope,
                               float shift)
{
    __m512 sums[CHAINS];
    for (int i = 0; i < CHAINS; i++)
        sums[i] = _mm512_setzero_ps();
    for (long j = 0; j < columns; j += STEP)
        for (int i = 0; i < CHAINS; i++) {
            long at = j + i * LANES;
            __m512 x = load(row + at, columns - at);
            x = _mm512_fmadd_ps(x, _mm512_set1_ps(slope), _mm512_set1_ps(shift));
            __m512 term = exp2_of(x);
            _mm512_store_ps(terms + at, term);
            sums[i] = _mm512_add_ps(sums[i], term);
        }
    return _mm512_reduce_add_ps(
        _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
}

FAST static void few_rows(void *context, long item, int thread)
{
    const float log2_of_e = 1.44269504f, log_of_2 = 0.693147181f;
    const Call *call = context;
    float *terms = call->scratch + thread * call->stride;
    long columns = call->columns, start = item * ROWS;
    long end = start + ROWS < call->rows ? start + ROWS : call->rows;
    for (long i = start; i < end; i++) {
        bf16 *row = call->logits + i * columns;
        int64_t target = call->targets[i];
        float chosen = _mm512_cvtss_f32(load_bf16(row + target, 1));
        float shift = -maximum(row, columns) * log2_of_e;
        float sum = exponentials(row, terms, columns, log2_of_e, shift);
        call->scores[i] = (fmaf(chosen, log2_of_e, shift) - log2f(sum)) * log_of_2;
        if (call->scale == 0)
            continue;
        __m512 factor = _mm512_set1_ps(call->scale / sum);
        terms[target] -= sum;
        for (long j = 0; j < columns; j += LANES)
            store_bf16(row + j, _mm512_mul_ps(_mm512_load_ps(terms + j), factor),
                       first(columns - j));
    }
}

/* The version of this kernel, 0 where the processor cannot run it. */
int loss_version(void)
{
    return bf16_is_supported();
}

/* 0, or -1 where there is no memory for a row of float32 for each thread. */
int loss_rows(bf16 *logits, const int64_t *targets, float *scores, long rows, long columns,
              float scale, int num_threads)
{
    long stride = (columns + STEP - 1) / STEP * STEP;
    Call call = {logits, targets, scores, rows, columns, scale, 0, stride};
    call.scratch = aligned_alloc(64, sizeof(float) * (size_t)stride * (size_t)num_threads);
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
