/* Combining on several threads (OpenMP) gives the same values as on one, by two methods. */
#include "agg/combine/combine.h"

#include "tests/threads/threads.h"

#include <string.h>
#include <unistd.h>

static const char *const paths[] = {FEDLORA_SOURCE_DIR "/tests/golden/agg/a",
                                    FEDLORA_SOURCE_DIR "/tests/golden/agg/b",
                                    FEDLORA_SOURCE_DIR "/tests/golden/agg/c"};

static void combine(struct combine *out, const char *method, int threads, const char *scratch)
{
    CHECK_OK(combine_open(out, &(struct combine_options){.method = method_find(method),
                                                         .path = paths,
                                                         .count = 3,
                                                         .compare = true,
                                                         .scratch = scratch,
                                                         .threads = threads}));
}

static bool same(const struct adapter_file_factor *a, const struct adapter_file_factor *b)
{
    return a->rows == b->rows && a->cols == b->cols &&
           memcmp(a->f32, b->f32, sizeof *a->f32 * a->rows * a->cols) == 0;
}

static void compare(const char *method, const char *dir)
{
    struct combine one = {0}, four = {0};
    char scratch[2][128];
    for (int i = 0; i < 2; i++)
        snprintf(scratch[i], sizeof scratch[i], "%s/%s-%d", dir, method, i);
    combine(&one, method, 1, scratch[0]);
    combine(&four, method, 4, scratch[1]);
    CHECK(one.count == four.count && one.count > 0);
    for (size_t i = 0; i < one.count; i++)
        for (int k = ADAPTER_FILE_A; k <= ADAPTER_FILE_B; k++)
            CHECK(same(&one.module[i].factor[k], &four.module[i].factor[k]));
    printf("%s: %zu modules\n", method, one.count);
    combine_close(&one);
    combine_close(&four);
}

int main(void)
{
    char dir[] = "/tmp/fedlora-threads-XXXXXX";
    CHECK(mkdtemp(dir) != NULL);
    compare("flora", dir);
    compare("florist", dir);
    CHECK(rmdir(dir) == 0);
    return 0;
}
