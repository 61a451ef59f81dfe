/* The part of Criterion that tests of the CUDA backend use, for the thread sanitizer, under which
 * Criterion cannot start, and for machines without Criterion (bench/gpu). Tests run one after the
 * other in one process (plain.c); a failed cr_assert ends its test. */
#ifndef TESTS_CUDA_ON_CPU_PLAIN_CRITERION_H
#define TESTS_CUDA_ON_CPU_PLAIN_CRITERION_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
void plain_register(const char *name, void (*test)(void));
void plain_check(bool good, bool fatal, const char *file, int line, const char *text,
                 const char *format, ...) __attribute__((format(printf, 6, 7)));
void plain_skip(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
#ifdef __cplusplus
}
#endif

#define Test(suite, name, ...)                                                                     \
    static void suite##_##name(void);                                                              \
    __attribute__((constructor)) static void suite##_##name##_register(void)                       \
    {                                                                                              \
        plain_register(#suite "/" #name, suite##_##name);                                          \
    }                                                                                              \
    static void suite##_##name(void)

#define PLAIN(x, fatal, text, ...)                                                                 \
    plain_check((x) ? true : false, fatal, __FILE__, __LINE__, text, " " __VA_ARGS__)
#define PLAIN_NEAR(a, b, e) ((a) - (b) <= (e) && (b) - (a) <= (e))
#define cr_assert(x, ...) PLAIN(x, true, #x, __VA_ARGS__)
#define cr_expect(x, ...) PLAIN(x, false, #x, __VA_ARGS__)
#define cr_assert_not(x, ...) PLAIN(!(x), true, "not " #x, __VA_ARGS__)
#define cr_expect_not(x, ...) PLAIN(!(x), false, "not " #x, __VA_ARGS__)
#define cr_assert_fail(...) PLAIN(false, true, "fail", __VA_ARGS__)
#define cr_assert_eq(a, b, ...) PLAIN((a) == (b), true, #a " == " #b, __VA_ARGS__)
#define cr_expect_eq(a, b, ...) PLAIN((a) == (b), false, #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...) PLAIN((a) != (b), true, #a " != " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...) PLAIN((a) != (b), false, #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...) PLAIN((a) < (b), true, #a " < " #b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...) PLAIN((a) < (b), false, #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...) PLAIN((a) <= (b), true, #a " <= " #b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...) PLAIN((a) <= (b), false, #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...) PLAIN((a) > (b), true, #a " > " #b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...) PLAIN((a) > (b), false, #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...) PLAIN((a) >= (b), true, #a " >= " #b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...) PLAIN((a) >= (b), false, #a " >= " #b, __VA_ARGS__)
#define cr_assert_null(x, ...) PLAIN(!(x), true, "no " #x, __VA_ARGS__)
#define cr_expect_null(x, ...) PLAIN(!(x), false, "no " #x, __VA_ARGS__)
#define cr_assert_not_null(x, ...) PLAIN(x, true, #x, __VA_ARGS__)
#define cr_expect_not_null(x, ...) PLAIN(x, false, #x, __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) PLAIN(!strcmp(a, b), true, #a " is " #b, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) PLAIN(!strcmp(a, b), false, #a " is " #b, __VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...) PLAIN(PLAIN_NEAR(a, b, e), true, #a " ~ " #b, __VA_ARGS__)
#define cr_expect_float_eq(a, b, e, ...) PLAIN(PLAIN_NEAR(a, b, e), false, #a " ~ " #b, __VA_ARGS__)
#define cr_log_info(...) ((void)printf(__VA_ARGS__), (void)printf("\n"))
#define cr_skip_test(...) plain_skip(" " __VA_ARGS__)
#endif
