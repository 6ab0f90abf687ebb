/* The threads are torch's own, reached through its OpenMP runtime: of threads of ours, each would
   wait for a processor on which one of torch's spins (measured: 4 ms, for work of 0.3 ms). */
#include "parallel.h"

typedef void (*Team)(void (*member)(void *), void *argument, unsigned num_threads, unsigned flags);

typedef struct {
    void (*task)(void *context, long item, int thread);
    void *context;
    long num_items, next_item;
    int next_thread;
} Work;

static Team team;

/* Takes the GOMP_parallel of the runtime whose threads are to be used; none means the caller's. */
void use_team(Team given)
{
    team = given;
}

/* A thread's part: item after item, until none is left. */
static void work_on(void *argument)
{
    Work *work = argument;
    int thread = __atomic_fetch_add(&work->next_thread, 1, __ATOMIC_RELAXED);
    for (;;) {
        long item = __atomic_fetch_add(&work->next_item, 1, __ATOMIC_RELAXED);
        if (item >= work->num_items)
            return;
        work->task(work->context, item, thread);
    }
}

void parallel(void (*task)(void *context, long item, int thread), void *context, long num_items,
              int num_threads)
{
    Work work = {task, context, num_items, 0, 0};
    /* Always all of them, even where there are fewer items: a team of another size is made anew. */
    if (team && num_threads > 1 && num_items > 1)
        team(work_on, &work, (unsigned)num_threads, 0);
    else
        work_on(&work);
}
