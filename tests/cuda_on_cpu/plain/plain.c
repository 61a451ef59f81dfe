/* Runs the tests of a program that was compiled with plain/criterion/criterion.h; with arguments
 * only those whose name contains one of them. Exit status 1 after a failed check. */
#include <criterion/criterion.h>
#include <setjmp.h>
#include <stdarg.h>

enum { TESTS_MAX = 256 };
static struct {
    const char *name;
    void (*run)(void);
} tests[TESTS_MAX];
static unsigned count, failures;
static jmp_buf leave; /* the running test */

void plain_register(const char *name, void (*test)(void))
{
    if (count == TESTS_MAX) abort();
    tests[count].name = name;
    tests[count++].run = test;
}

void plain_check(bool good, bool fatal, const char *file, int line, const char *text,
                 const char *format, ...)
{
    va_list list;
    if (good) return;
    failures++;
    printf("%s:%d: %s:", file, line, text);
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    printf("\n");
    if (fatal) longjmp(leave, 1);
}

void plain_skip(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    printf("skipped:");
    vprintf(format, list);
    va_end(list);
    printf("\n");
    longjmp(leave, 1);
}

static bool wanted(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (strstr(name, argv[i])) return true;
    return argc == 1;
}

static bool run(unsigned i)
{
    unsigned before = failures;
    printf("%s\n", tests[i].name);
    fflush(stdout);
    if (!setjmp(leave)) tests[i].run();
    return failures == before;
}

int main(int argc, char **argv)
{
    unsigned ran = 0, bad = 0;
    for (unsigned i = 0; i < count; i++)
        if (wanted(tests[i].name, argc, argv)) {
            ran++;
            bad += !run(i);
        }
    printf("%u tests, %u failed\n", ran, bad);
    return bad != 0;
}
