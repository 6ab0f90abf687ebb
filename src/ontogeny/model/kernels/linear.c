/* A linear map of tokens, y = f(x) W^T + b in bfloat16, and its gradients; f is nothing, or GELU.

   Weights and biases may be float32: they are rounded as they are read, and so are their gradients,
   which then are bfloat16 numbers in float32, the same bits as where all is bfloat16.

   Rows of tokens are left operands as they lie in memory; the right ones are laid in panels of 64
   columns, pairs along what is summed over. What comes before a map is applied as it is read, so
   that no activation is kept: the backward pass computes it again, with its derivative. Sums are
   float32 and rounded once. Each is formed in one order, by one thread: bits depend neither on
   threads nor on the cut, and those of y neither on the other tokens. */
#include "bf16.h"
#include "parallel.h"

#ifdef HAS_BF16

#include <stdlib.h>
#include <string.h>

/* The version of these kernels, 0 where the processor cannot run them. */
int linear_version(void)
{
    return bf16_is_supported() ? 1 : 0;
}

enum { TOKENS = 128, PAIRS = TOKENS / 2, TILE = 32 };
enum { IDENTITY, GELU, GELU_TANH }; /* as `linear.py` numbers them */

typedef struct {
    const bf16 *x;            /* [tokens, ins] */
    const void *weight;       /* [outs, ins] */
    const void *bias;         /* [outs] */
    const bf16 *dy;           /* [tokens, outs] */
    bf16 *y, *dx;             /* as dy and x */
    void *d_weight, *d_bias;  /* as weight and bias */
    long tokens, ins, outs;
    int activation, is_wide;  /* weights and biases are float32 */
    pair *panels;  /* the weights as a right operand, in panels */
    pair *turned;  /* [blocks][outs][PAIRS]: dy, pairs along the tokens */
    pair *inputs;  /* [blocks][PAIRS, ins] in panels: f(x), likewise */
    float *d_sums; /* [blocks][outs]: of dy */
    char *scratch;
    long bytes; /* of a thread's scratch */
} Map;

typedef struct {
    float sums[TOKENS * PANEL];
    bf16 values[TOKENS * PANEL];
    bf16 block[]; /* [TOKENS][ins or outs] */
} Tile;

/* ---- activation functions ---- */

typedef struct {
    __m512 value, slope;
} Activated;

/* x times the normal distribution's share below x (Hendrycks and Gimpel 2016), to 2e-7 of x.
   The share is formula 7.1.26 of Abramowitz and Stegun, whose exponential the slope needs too. */
INLINE Activated gelu(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 e = exp2_of(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.72134752f)));
    __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.23164190f),
                                                  one));
    __m512 tail = _mm512_set1_ps(0.53070271f);
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(-0.72657601f));
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(0.71070687f));
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(-0.14224837f));
    tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(0.12741480f));
    tail = _mm512_mul_ps(_mm512_mul_ps(tail, t), e);
    __mmask16 above = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GE_OQ);
    __m512 share = _mm512_mask_sub_ps(tail, above, one, tail);
    __m512 density = _mm512_mul_ps(e, _mm512_set1_ps(0.39894228f));
    return (Activated){_mm512_mul_ps(x, share), _mm512_fmadd_ps(x, density, share)};
}

/* Its approximation through a hyperbolic tangent (the same source). */
INLINE Activated gelu_tanh(__m512 x)
{
    const __m512 one = _mm512_set1_ps(1.0f);
    __m512 square = _mm512_mul_ps(x, x);
    /* minus the exponent of e^(2 sqrt(2/pi) (x + 0.044715 x^3)), base 2, over x */
    __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(-0.10294324f),
                                   _mm512_set1_ps(-2.3022082f));
    __m512 exponent = _mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_mul_ps(x, inner));
    __m512 share = _mm512_div_ps(one, _mm512_add_ps(one, exp2_of(exponent)));
    __m512 slope = _mm512_fmadd_ps(square, _mm512_set1_ps(0.21406445f),
                                   _mm512_set1_ps(1.5957691f)); /* of the exponent, base e */
    slope = _mm512_mul_ps(_mm512_mul_ps(x, slope), _mm512_fnmadd_ps(share, share, share));
    return (Activated){_mm512_mul_ps(x, share), _mm512_add_ps(share, slope)};
}

INLINE Activated activated(int activation, __m512 x)
{
    return activation == GELU ? gelu(x) : gelu_tanh(x);
}

/* ---- parts of both passes ---- */

static long pieces(long whole, long piece)
{
    return (whole + piece - 1) / piece;
}

static Tile *tile_of(const Map *map, int thread)
{
    return (Tile *)(map->scratch + thread * map->bytes);
}

static long by_eights(long rows)
{
    return (rows + 7) / 8 * 8;
}

/* Rows of a block that can be read by eights: as they lie, or copied where the last ones lack. */
FAST static const bf16 *whole_rows(bf16 *to, const bf16 *from, long rows, long width)
{
    if (rows == by_eights(rows))
        return from;
    memcpy(to, from, sizeof(bf16) * (size_t)(rows * width));
    memset(to + rows * width, 0, sizeof(bf16) * (size_t)((by_eights(rows) - rows) * width));
    return to;
}

/* The bfloat16 nearest to a number. */
INLINE __m512 rounded(__m512 x)
{
    __m256i bits = (__m256i)_mm512_cvtneps_pbh(x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

/* Of weights or biases, the vector at a place. */
INLINE __m512 read(const Map *map, const void *from, long place)
{
    return map->is_wide ? rounded(_mm512_loadu_ps((const float *)from + place))
                        : load_bf16((const bf16 *)from + place, 0xffff);
}

INLINE void write(const Map *map, void *to, long place, __m512 x)
{
    if (map->is_wide)
        _mm512_storeu_ps((float *)to + place, rounded(x));
    else
        store_bf16((bf16 *)to + place, x, 0xffff);
}

/* Rows and columns of the weights, [rows][width]. */
FAST static void read_weights(const Map *map, bf16 *to, long row, long column, long rows,
                              long width)
{
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < width; j += LANES)
            store_bf16(to + i * width + j,
                       read(map, map->weight, (row + i) * map->ins + column + j), 0xffff);
}

/* The activation of a block's rows. */
FAST static void activate(bf16 *to, const bf16 *from, long count, int activation)
{
    for (long i = 0; i < count; i += LANES)
        store_bf16(to + i, activated(activation, load_bf16(from + i, 0xffff)).value, 0xffff);
}

/* ---- forward ---- */

/* A panel of W^T: pairs along the inputs. */
FAST static void panel_of_outs(void *context, long item, int thread)
{
    const Map *map = context;
    bf16 *rows = tile_of(map, thread)->block;
    long o = item * PANEL, pairs = map->ins / 2, width = smaller(PANEL, map->outs - o);
    read_weights(map, rows, o, 0, width, map->ins);
    transpose(map->panels + o * pairs, width, rows, pairs, width, pairs);
}

/* The outputs of a block of tokens. */
FAST static void outputs(void *context, long item, int thread)
{
    const Map *map = context;
    Tile *tile = tile_of(map, thread);
    long start = item * TOKENS, count = smaller(TOKENS, map->tokens - start), pairs = map->ins / 2;
    const bf16 *rows = whole_rows(tile->block, map->x + start * map->ins, count, map->ins);
    if (map->activation != IDENTITY) {
        activate(tile->block, rows, by_eights(count) * map->ins, map->activation);
        rows = tile->block;
    }
    for (long o = 0; o < map->outs; o += PANEL) {
        long width = smaller(PANEL, map->outs - o);
        product_of_panels(tile->sums, PANEL, (const pair *)rows, pairs, map->panels + o * pairs,
                          by_eights(count), width, pairs, 0);
        for (long i = 0; i < count; i++)
            for (long j = 0; j < width; j += LANES) {
                __m512 sum = _mm512_add_ps(_mm512_loadu_ps(tile->sums + i * PANEL + j),
                                           read(map, map->bias, o + j));
                store_bf16(map->y + (start + i) * map->outs + o + j, sum, 0xffff);
            }
    }
}

/* ---- backward ---- */

/* A panel of W: pairs along the outputs. */
FAST static void panel_of_ins(void *context, long item, int thread)
{
    const Map *map = context;
    bf16 *columns = tile_of(map, thread)->block;
    long i = item * PANEL, width = smaller(PANEL, map->ins - i);
    read_weights(map, columns, 0, i, map->outs, width);
    pair_rows(map->panels + i * (map->outs / 2), map->outs / 2, columns, width, map->outs, width);
}

/* Of a block and a panel of inputs: their gradient, and f(x) as a right operand. */
FAST static void turn_inputs(const Map *map, Tile *tile, long start, long count, long i, long width)
{
    long place = start / TOKENS * PAIRS * map->ins + i * PAIRS, ldx = map->ins;
    const bf16 *x = map->x + start * ldx + i;
    for (long row = 0; row < count; row++)
        for (long j = 0; j < width; j += LANES) {
            __m512 d = _mm512_loadu_ps(tile->sums + row * PANEL + j);
            if (map->activation != IDENTITY) {
                Activated f = activated(map->activation, load_bf16(x + row * ldx + j, 0xffff));
                store_bf16(tile->values + row * PANEL + j, f.value, 0xffff);
                d = _mm512_mul_ps(d, f.slope);
            }
            store_bf16(map->dx + (start + row) * ldx + i + j, d, 0xffff);
        }
    if (map->activation == IDENTITY)
        pair_rows(map->inputs + place, PAIRS, x, ldx, count, width);
    else
        pair_rows(map->inputs + place, PAIRS, tile->values, PANEL, count, width);
}

/* Of a block and a panel of outputs: dy as a left operand of the weights' gradient, and its sums. */
FAST static void turn_outputs(const Map *map, Tile *tile, long start, long count, long o,
                              long width)
{
    const bf16 *dy = map->dy + start * map->outs + o;
    pair *pairs = (pair *)tile->sums;
    pair_rows(pairs, PAIRS, dy, map->outs, count, width);
    transpose(map->turned + (start / TOKENS * map->outs + o) * PAIRS, PAIRS, pairs, width, PAIRS,
              width);
    __m512 sums[PANEL / LANES] = {0};
    for (long row = 0; row < count; row++)
        UNROLL for (long j = 0; j < PANEL; j += LANES)
            if (j < width)
                sums[j / LANES] = _mm512_add_ps(sums[j / LANES],
                                                load_bf16(dy + row * map->outs + j, 0xffff));
    for (long j = 0; j < width; j += LANES)
        _mm512_storeu_ps(map->d_sums + start / TOKENS * map->outs + o + j, sums[j / LANES]);
}

/* The gradient of a block of tokens, and what the weights' gradient needs of it. */
FAST static void gradients(void *context, long item, int thread)
{
    const Map *map = context;
    Tile *tile = tile_of(map, thread);
    long start = item * TOKENS, count = smaller(TOKENS, map->tokens - start), pairs = map->outs / 2;
    const bf16 *rows = whole_rows(tile->block, map->dy + start * map->outs, count, map->outs);
    for (long i = 0; i < map->ins; i += PANEL) {
        long width = smaller(PANEL, map->ins - i);
        product_of_panels(tile->sums, PANEL, (const pair *)rows, pairs, map->panels + i * pairs,
                          by_eights(count), width, pairs, 0);
        turn_inputs(map, tile, start, count, i, width);
    }
    for (long o = 0; o < map->outs; o += PANEL)
        turn_outputs(map, tile, start, count, o, smaller(PANEL, map->outs - o));
}

/* The gradient of some rows of a panel of weights, over all tokens; and of these rows' biases. */
FAST static void some_weights(void *context, long item, int thread)
{
    const Map *map = context;
    Tile *tile = tile_of(map, thread);
    long num_panels = pieces(map->ins, PANEL), blocks = pieces(map->tokens, TOKENS);
    long o = item / num_panels * TILE, i = item % num_panels * PANEL;
    long rows = smaller(TILE, map->outs - o), width = smaller(PANEL, map->ins - i);
    for (long b = 0; b < blocks; b++)
        product_of_panels(tile->sums, PANEL, map->turned + (b * map->outs + o) * PAIRS, PAIRS,
                          map->inputs + (b * map->ins + i) * PAIRS, rows, width, PAIRS, b > 0);
    for (long row = 0; row < rows; row++)
        for (long j = 0; j < width; j += LANES)
            write(map, map->d_weight, (o + row) * map->ins + i + j,
                  _mm512_loadu_ps(tile->sums + row * PANEL + j));
    for (long j = 0; i == 0 && j < rows; j += LANES) {
        __m512 sum = _mm512_setzero_ps();
        for (long b = 0; b < blocks; b++)
            sum = _mm512_add_ps(sum, _mm512_loadu_ps(map->d_sums + b * map->outs + o + j));
        write(map, map->d_bias, o + j, sum);
    }
}

/* ---- calls; ins and outs are multiples of 16; 0, or -1 without memory ---- */

static long whole_lines(long bytes)
{
    return (bytes + 63) / 64 * 64;
}

/* Takes memory for the threads' scratch and what lies behind it. */
static char *take(Map *map, long others, int num_threads)
{
    long width = map->ins > map->outs ? map->ins : map->outs;
    map->bytes = whole_lines((long)(sizeof(Tile) + sizeof(bf16) * (size_t)(TOKENS * width)));
    map->scratch = aligned_alloc(64, (size_t)(map->bytes * num_threads + whole_lines(others)));
    return map->scratch ? map->scratch + map->bytes * num_threads : NULL;
}

int linear_forward(const bf16 *x, const void *weight, const void *bias, bf16 *y, long tokens,
                   long ins, long outs, long activation, long is_wide, int num_threads)
{
    Map map = {.x = x, .weight = weight, .bias = bias, .y = y, .tokens = tokens, .ins = ins,
               .outs = outs, .activation = (int)activation, .is_wide = (int)is_wide};
    map.panels = (pair *)take(&map, ins * outs * 2, num_threads);
    if (!map.panels)
        return -1;
    parallel(panel_of_outs, &map, pieces(outs, PANEL), num_threads);
    parallel(outputs, &map, pieces(tokens, TOKENS), num_threads);
    free(map.scratch);
    return 0;
}

int linear_backward(const bf16 *x, const void *weight, const bf16 *dy, bf16 *dx, void *d_weight,
                    void *d_bias, long tokens, long ins, long outs, long activation, long is_wide,
                    int num_threads)
{
    Map map = {.x = x, .weight = weight, .dy = dy, .dx = dx, .d_weight = d_weight,
               .d_bias = d_bias, .tokens = tokens, .ins = ins, .outs = outs,
               .activation = (int)activation, .is_wide = (int)is_wide};
    long blocks = pieces(tokens, TOKENS);
    map.panels = (pair *)take(
        &map, ins * outs * 2 + blocks * (TOKENS * (ins + outs) * 2 + outs * 4), num_threads);
    if (!map.panels)
        return -1;
    map.turned = map.panels + ins * outs / 2;
    map.inputs = map.turned + blocks * PAIRS * outs;
    map.d_sums = (float *)(map.inputs + blocks * PAIRS * ins);
    parallel(panel_of_ins, &map, pieces(ins, PANEL), num_threads);
    parallel(gradients, &map, blocks, num_threads);
    parallel(some_weights, &map, pieces(outs, TILE) * pieces(ins, PANEL), num_threads);
    free(map.scratch);
    return 0;
}

#else
int linear_version(void)
{
    return 0;
}
#endif
