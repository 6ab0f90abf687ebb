/* Threads that live as long as a call: a pool would not survive fork, and costs more lines than it
   saves time (a thread starts in about 20 us; nothing is split that takes less than that). */
#include "parallel.h"

#include <pthread.h>

enum { MAX_THREADS = 256 };

typedef struct {
    void (*task)(void *context, long item, int thread);
    void *context;
    long num_items, next;
} Work;

typedef struct {
    Work *work;
    int thread;
} Worker;

/* Takes item after item until none is left. */
static void *take(void *argument)
{
    Worker *worker = argument;
    Work *work = worker->work;
    for (;;) {
        long item = __atomic_fetch_add(&work->next, 1, __ATOMIC_RELAXED);
        if (item >= work->num_items)
            return 0;
        work->task(work->context, item, worker->thread);
    }
}

void parallel(void (*task)(void *context, long item, int thread), void *context, long num_items,
              int num_threads)
{
    Work work = {task, context, num_items, 0};
    Worker workers[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started = 1;
    if (num_threads > num_items)
        num_threads = (int)num_items;
    for (; started < num_threads && started < MAX_THREADS; started++) {
        workers[started] = (Worker){&work, started};
        if (pthread_create(&threads[started], 0, take, &workers[started]))
            break; /* the threads there are do its work */
    }
    workers[0] = (Worker){&work, 0};
    take(&workers[0]);
    while (--started > 0)
        pthread_join(threads[started], 0);
}
