#include "base/training_options.h"

#include <criterion/criterion.h>
#include <string.h>

Test(training_options, every_default_lies_in_its_range)
{
    struct training_options o;
    training_options_defaults(&o);
    cr_expect_eq(o.steps, 0);
    cr_expect_eq(o.epochs, 1);
    cr_expect_eq(o.batch, 4);
    cr_expect_eq(o.accumulate, 1);
    cr_expect_eq(o.seq, 1024);
    cr_expect_eq(o.lr, 2e-4);
    cr_expect_eq(o.schedule, TRAINING_LINEAR);
    cr_expect_eq(o.beta1, 0.9);
    cr_expect_eq(o.beta2, 0.999);
    cr_expect_eq(o.eps, 1e-8);
    cr_expect_eq(o.clip, 1);
    cr_expect(o.shuffle && o.eos && !o.bos);
    cr_expect_eq(o.boundary, TRAINING_BOUNDARY_MERGE);
    cr_expect_eq(o.precision, TRAINING_PRECISION_AUTO);
}

Test(training_options, names_stand_in_the_order_of_their_enumerations)
{
    cr_expect_str_eq(training_schedules[TRAINING_CONSTANT], "constant");
    cr_expect_str_eq(training_schedules[TRAINING_LINEAR], "linear");
    cr_expect_str_eq(training_schedules[TRAINING_COSINE], "cosine");
    cr_expect_str_eq(training_boundaries[TRAINING_BOUNDARY_MERGE], "merge");
    cr_expect_str_eq(training_boundaries[TRAINING_BOUNDARY_SPLIT], "split");
    cr_expect_str_eq(training_precisions[TRAINING_PRECISION_AUTO], "auto");
    cr_expect_str_eq(training_precisions[TRAINING_PRECISION_F32], "f32");
    cr_expect_str_eq(training_precisions[TRAINING_PRECISION_BF16], "bf16");
}

/* The rows' values fill the struct but for padding after its smaller members. */
Test(training_options, every_member_of_the_struct_has_a_row)
{
    static const size_t size[] = {
        [OPTION_FLAG] = sizeof(bool),
        [OPTION_INT] = sizeof(int64_t),
        [OPTION_NUM] = sizeof(double),
        [OPTION_CHOICE] = sizeof(int),
    };
    size_t bytes = 0, align = _Alignof(struct training_options);
    const struct option_row *row;
    for (size_t i = 0; (row = option_row_at(training_options_set(), i)) != NULL; i++) {
        cr_expect_eq(strncmp(row->key, "train.", 6), 0, "%s", row->key);
        cr_expect_not_null(row->fallback, "%s", row->key);
        bytes += size[row->kind];
    }
    cr_expect_eq((bytes + align - 1) / align * align, sizeof(struct training_options));
}
