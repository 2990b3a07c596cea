/* Runs one program of RLX on the machine it is compiled for, with the worker threads of rlx/backends/cpu/threads.py.

   driver JOB RESULT

   All numbers are int64. JOB: buffers, steps, threads, runs; for each buffer its size, whether its bytes are given and
   whether they are wanted; for each step its kernel, units, group, number of buffers, of sizes, and these; then the
   given bytes. RESULT: most threads that took part in a run, the fault word, whether bytes beside a buffer were
   written to; then the wanted bytes. The words of the shared state come from rlx/backends/cpu/native.py as macros. */

#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GUARD 64

extern void *kernels[];
int64_t rlx_run(int64_t *state, int64_t workers, int64_t patience);
int64_t rlx_worker(int64_t *state, int64_t index, int64_t patience);

static int64_t *state;

static void *serve(void *index) {
    while (!rlx_worker(state, (int64_t)index, 300000)) sched_yield();
    return 0;
}

static int64_t next(FILE *file) {
    int64_t value;
    if (fread(&value, sizeof value, 1, file) != 1) exit(3);
    return value;
}

static void *aligned(int64_t bytes) {
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) exit(4);
    return memory;
}

int main(int count, char **arguments) {
    FILE *job = count == 3 ? fopen(arguments[1], "rb") : 0;
    if (!job) return 2;
    int64_t buffers = next(job), steps = next(job), threads = next(job), runs = next(job);
    int64_t *sizes = aligned(8 * buffers), *given = aligned(8 * buffers), *wanted = aligned(8 * buffers);
    uint8_t **memory = aligned(8 * buffers);
    for (int64_t i = 0; i < buffers; i++) {
        sizes[i] = next(job), given[i] = next(job), wanted[i] = next(job);
        memory[i] = (uint8_t *)aligned(sizes[i] + 2 * GUARD) + GUARD;
        memset(memory[i] - GUARD, 0xA5, sizes[i] + 2 * GUARD);
    }
    int64_t *table = aligned(8 * LINE * (steps + 1)), fault[8] = {0};
    memset(table, 0, 8 * LINE * (steps + 1));
    for (int64_t i = 0; i < steps; i++) {
        int64_t *row = table + i * LINE;
        row[STEP_FUNCTION] = (int64_t)kernels[next(job)];
        row[STEP_UNITS] = next(job), row[STEP_GROUP] = next(job);
        int64_t operands = next(job), numbers = next(job);
        int64_t *addresses = aligned(8 * (operands + 1)), *scalars = aligned(8 * (numbers + 1));
        for (int64_t j = 0; j < operands; j++) addresses[j] = (int64_t)memory[next(job)];
        for (int64_t j = 0; j < numbers; j++) scalars[j] = next(job);
        row[STEP_BUFFERS] = (int64_t)addresses, row[STEP_SIZES] = (int64_t)scalars;
    }
    for (int64_t i = 0; i < buffers; i++)
        if (given[i] && fread(memory[i], 1, sizes[i], job) != (size_t)sizes[i]) return 3;

    int64_t words = WORDS_WORKERS + (threads + 1) * LINE;
    state = aligned(8 * words);
    memset(state, 0, 8 * words);
    state[WORDS_YIELD] = (int64_t)sched_yield;
    state[WORDS_STEPS] = (int64_t)table, state[WORDS_COUNT] = steps, state[WORDS_FAULT] = (int64_t)fault;
    pthread_t *workers = aligned(sizeof *workers * (threads + 1));
    for (int64_t i = 0; i < threads - 1; i++)
        if (pthread_create(&workers[i], 0, serve, (void *)i)) return 5;
    int64_t took_part = 0;
    for (int64_t run = 0; run < runs; run++) {
        for (int64_t i = 0; i < steps; i++) table[i * LINE + STEP_CLAIMED] = table[i * LINE + STEP_DONE] = 0;
        int64_t now = rlx_run(state, threads - 1, 10000000);
        if (now > took_part) took_part = now;
    }
    __atomic_store_n(&state[WORDS_STOP], 1, __ATOMIC_SEQ_CST);
    for (int64_t i = 0; i < threads - 1; i++) pthread_join(workers[i], 0);

    int64_t beside = 0;
    for (int64_t i = 0; i < buffers; i++)
        for (int j = 0; j < GUARD; j++) beside |= memory[i][-1 - j] != 0xA5 || memory[i][sizes[i] + j] != 0xA5;
    FILE *result = fopen(arguments[2], "wb");
    if (!result) return 2;
    int64_t head[3] = {took_part, fault[0], beside};
    fwrite(head, sizeof head, 1, result);
    for (int64_t i = 0; i < buffers; i++)
        if (wanted[i]) fwrite(memory[i], 1, sizes[i], result);
    return fclose(result) ? 6 : 0;
}
