/* The plan of a sweep: lists, their product, and sections for some of the cells. */
#include "sim/sweep.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static struct arena arena;

static err read_text(struct sweep *out, const char *text)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/sweep.ini", dir);
    cr_assert_not(err_is(file_write(path, text, strlen(text), true)));
    err e = sweep_read(out, path, &arena);
    support_dir_remove(dir);
    return e;
}

static void read_good(struct sweep *out, const char *text)
{
    err e = read_text(out, text);
    cr_assert_not(err_is(e), "%s", e.text);
}

static void refuses(const char *text, const char *message)
{
    struct sweep s;
    err e = read_text(&s, text);
    cr_assert(err_is(e), "accepted: %s", text);
    cr_assert(strstr(e.text, message), "\"%s\" has no \"%s\"", e.text, message);
}

Test(sweep, makes_one_cell_without_lists)
{
    struct sweep s;
    struct sweep_cell *cell = NULL;
    read_good(&s, "[run]\nmethod = flora\n");
    cr_assert_eq(s.axes, 0);
    cr_assert_eq(s.cells, 1);
    cr_assert_not(err_is(sweep_cells(&cell, &s, &arena)));
    cr_assert_eq(cell[0].values.count, 0);
    arena_close(&arena);
}

Test(sweep, multiplies_its_lists_with_the_last_one_fastest)
{
    static const char *const names[] = {"flora_seed-1_targets-q-v", "flora_seed-1_targets-q",
                                        "flora_seed-2_targets-q-v", "flora_seed-2_targets-q",
                                        "ffa_seed-1_targets-q-v",   "ffa_seed-1_targets-q",
                                        "ffa_seed-2_targets-q-v",   "ffa_seed-2_targets-q"};
    struct sweep s;
    struct sweep_cell *cell = NULL;
    read_good(&s, "[sweep]\nrun.method = flora ,ffa\nrun.seed=1, 2\nrun.targets = q,v | q\n");
    cr_assert_eq(s.cells, 8);
    cr_assert_not(err_is(sweep_cells(&cell, &s, &arena)));
    for (size_t i = 0; i < 8; i++)
        cr_assert_str_eq(cell[i].name, names[i]);
    cr_assert_str_eq(cell[5].values.item[0], "run.method=ffa");
    cr_assert_str_eq(cell[4].values.item[2], "run.targets=q,v");
    cr_assert_str_eq(cell[6].label, "method=ffa seed=2 targets=q,v");
    cr_assert_str_eq(cell[6].group, "method=ffa targets=q,v");
    cr_assert_str_eq(cell[6].seed, "2");
    arena_close(&arena);
}

Test(sweep, gives_every_cell_a_folder_of_its_own)
{
    struct sweep s;
    struct sweep_cell *cell = NULL;
    read_good(&s, "[sweep]\ndata.train = a/b, a-b, ../x\n");
    cr_assert_not(err_is(sweep_cells(&cell, &s, &arena)));
    cr_assert_str_eq(cell[0].name, "train-a-b");
    cr_assert_str_eq(cell[1].name, "cell2_train-a-b");
    cr_assert_str_eq(cell[2].name, "train-..-x");
    arena_close(&arena);
}

Test(sweep, reads_sections_for_some_of_the_cells)
{
    struct sweep s;
    read_good(&s, "[when run.method=ffa  data.alpha=0.5]\ntrain.lr = 1\nrun.rank = 2\n"
                  "[when run.seed=2]\ntrain.lr = 3\n");
    cr_assert_eq(s.whens, 2);
    cr_assert_eq(s.when[0].condition.count, 2);
    cr_assert_str_eq(s.when[0].condition.item[1], "data.alpha=0.5");
    cr_assert_str_eq(s.when[0].assignment.item[1], "run.rank=2");
    cr_assert_str_eq(s.when[1].assignment.item[0], "train.lr=3");
    arena_close(&arena);
}

Test(sweep, replaces_a_list)
{
    struct sweep s;
    read_good(&s, "[sweep]\nrun.seed = 1, 2, 3\n");
    cr_assert_not(err_is(sweep_set(&s, "run.seed", "9", &arena)));
    cr_assert_not(err_is(sweep_set(&s, "run.rank", "2,4", &arena)));
    cr_assert(sweep_has(&s, "run.rank") && !sweep_has(&s, "run.method"));
    cr_assert_eq(s.cells, 2);
    arena_close(&arena);
}

Test(sweep, refuses_what_it_cannot_run)
{
    struct bytes text = {.max = 8192};
    cr_assert_not(err_is(bytes_printf(&text, "[sweep]")));
    for (int i = 0; i < 200; i++)
        cr_assert_not(err_is(bytes_printf(&text, "%s%d",
                                          i == 0     ? "\nrun.seed = "
                                          : i == 100 ? "\nrun.rank = "
                                                     : ", ",
                                          i)));
    refuses((const char *)text.data, "10000 cells, expected at most 4096");
    bytes_close(&text);
    refuses("[sweep]\nrun.seed = 1,, 2\n", "sweep.ini:2: run.seed: \"1,, 2\": expected values");
    refuses("[sweep]\nrun.seed = 1, 1\n", "the value 1 is there twice");
    refuses("[sweep]\nrun.seed = 1\nrun.seed = 2\n", "two lists of run.seed");
    refuses("[when run.method=a-very-long-name-that-the-reader-would-cut]\nrun.seed = 1\n",
            "expected names of less than");
    arena_close(&arena);
}
