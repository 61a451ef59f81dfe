/* Log lines of several threads: each is written whole. */
#include "base/log.h"

#include "tests/threads/threads.h"

#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { THREADS = 4, LINES = 200 };

static void *write_lines(void *argument)
{
    int64_t number = *(const int *)argument;
    for (int64_t i = 0; i < LINES; i++)
        LOG(LOG_INFO, "threads.test", LOG_INT("thread", number), LOG_INT("line", i));
    return NULL;
}

int main(void)
{
    FILE *out = tmpfile();
    int number[THREADS], error = dup(STDERR_FILENO), count = 0;
    pthread_t thread[THREADS];
    char line[512];
    CHECK(out != NULL && error >= 0);
    log_init(LOG_INFO, false);
    CHECK(dup2(fileno(out), STDERR_FILENO) >= 0);
    for (int i = 0; i < THREADS; i++) {
        number[i] = i;
        CHECK(pthread_create(&thread[i], NULL, write_lines, &number[i]) == 0);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(thread[i], NULL);
    CHECK(dup2(error, STDERR_FILENO) >= 0);
    rewind(out);
    for (; fgets(line, sizeof line, out); count++)
        CHECK(strstr(line, "event=threads.test thread=") && strstr(line, " line=") &&
              line[strlen(line) - 1] == '\n');
    CHECK(count == THREADS * LINES);
    printf("%d lines\n", count);
    return 0;
}
