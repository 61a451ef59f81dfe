/* The table of what a member may state, and the refusals that follow from it. */
#include "coordinator/run/bounds.h"

#include "base/limits.h"
#include "fedlora.pb-c.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

static const ProtobufCMessageDescriptor *const checked[] = {
    &fedlora__v1__hello_request__descriptor,
    &fedlora__v1__submit_header__descriptor,
    &fedlora__v1__report_request__descriptor,
};

Test(bounds, every_field_of_a_member_s_messages_has_a_row)
{
    for (size_t m = 0; m < 3; m++)
        for (unsigned f = 0; f < checked[m]->n_fields; f++)
            cr_expect(bounds_find(checked[m], checked[m]->fields[f].name), "%s.%s",
                      checked[m]->short_name, checked[m]->fields[f].name);
}

struct messages {
    Fedlora__V1__HelloRequest hello;
    Fedlora__V1__ModuleShape module, *list[1];
    Fedlora__V1__SubmitHeader submit;
    Fedlora__V1__ReportRequest report;
};

static void fill(struct messages *m)
{
    *m = (struct messages){.hello = FEDLORA__V1__HELLO_REQUEST__INIT,
                           .module = FEDLORA__V1__MODULE_SHAPE__INIT,
                           .submit = FEDLORA__V1__SUBMIT_HEADER__INIT,
                           .report = FEDLORA__V1__REPORT_REQUEST__INIT};
    m->list[0] = &m->module;
    m->hello.modules = m->list;
    m->hello.n_modules = 1;
    m->submit.size = 1;
}

Test(bounds, small_messages_pass)
{
    struct messages m;
    fill(&m);
    ok(bounds_check(&m.hello.base));
    ok(bounds_check(&m.submit.base));
    ok(bounds_check(&m.report.base));
    m.report.eval_rows = LIMIT_ROWS;
    m.report.eval_accuracy = -1;
    ok(bounds_check(&m.report.base));
}

Test(bounds, numbers_beyond_them_are_refused_by_name)
{
    struct messages m;
    fill(&m);
    m.report.eval_rows = INT64_MAX;
    refused(bounds_check(&m.report.base), ERR_INPUT,
            "ReportRequest: eval_rows is 9.22337204e+18, expected 0 to 67108864");
    m.report.eval_rows = 0;
    m.report.eval_loss = NAN;
    refused(bounds_check(&m.report.base), ERR_INPUT, "eval_loss is nan");
    m.report.eval_loss = -0.5;
    refused(bounds_check(&m.report.base), ERR_INPUT, "eval_loss is -0.5, expected 0 to");
    m.submit.train_loss = INFINITY;
    refused(bounds_check(&m.submit.base), ERR_INPUT, "train_loss is inf");
    m.hello.n_modules = LIMIT_MODULES + 1;
    refused(bounds_check(&m.hello.base), ERR_INPUT,
            "HelloRequest: modules is 3585 entries, expected 1 to 3584");
    m.hello.n_modules = 0;
    refused(bounds_check(&m.hello.base), ERR_INPUT, "modules is 0 entries");
    m.hello.n_modules = 1;
    m.hello.rank = LIMIT_RANK + 1;
    refused(bounds_check(&m.hello.base), ERR_INPUT, "rank is 4097, expected 0 to 4096");
}
