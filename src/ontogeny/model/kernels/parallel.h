/* Work split over threads. Results must not depend on who does an item, nor on how many do. */
#ifndef ONTOGENY_PARALLEL_H
#define ONTOGENY_PARALLEL_H

/* Calls task(context, item, thread) once for every item from 0 to num_items - 1, on at most
   num_threads threads, the caller's among them; `thread`, from 0, tells whose scratch to use. */
void parallel(void (*task)(void *context, long item, int thread), void *context, long num_items,
              int num_threads);

#endif
