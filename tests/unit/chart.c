/* Charts as SVG: texts are escaped, points lie in proportion to their values, and bands, levels,
 * logarithmic axes and legends are drawn. */
#include "client/output/chart.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* The picture's drawing area; the numbers of client/output/chart.c. */
enum { LEFT = 76, RIGHT = 720 - 24, TOP = 66, BOTTOM = 440 - 62 };

static struct bytes svg = {.max = 1 << 20};

static const char *draw(const struct chart *c)
{
    bytes_clear(&svg);
    cr_assert_not(err_is(chart_lines(&svg, c)));
    return (const char *)svg.data;
}

static size_t count(const char *text, const char *part)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, part)); at++)
        n++;
    return n;
}

static void has(const char *text, const char *part)
{
    cr_assert(strstr(text, part), "no %s in\n%s", part, text);
}

Test(chart, escapes_every_text)
{
    const struct chart_line line = {
        .name = "<b>", .x = (double[]){1}, .y = (double[]){2}, .count = 1};
    const struct chart c = {
        .title = "a&b", .x_label = "\"x\"", .y_label = "it's", .line = &line, .lines = 1};
    const char *text = draw(&c);
    has(text, "a&amp;b");
    has(text, "&lt;b&gt;");
    has(text, "&quot;x&quot;");
    has(text, "it&#39;s");
    bytes_close(&svg);
}

Test(chart, puts_points_in_proportion_to_their_values)
{
    char end[64], middle[64];
    const struct chart_line line = {
        .x = (double[]){0, 1, NAN, 2}, .y = (double[]){0, 5, 3, 0}, .count = 4};
    const struct chart c = {
        .title = "t", .x_label = "x", .y_label = "y", .line = &line, .lines = 1};
    snprintf(end, sizeof end, "%.2f,%.2f \"", (double)RIGHT, (double)BOTTOM);
    snprintf(middle, sizeof middle, "\"%.2f,%.2f ", (double)LEFT, (double)BOTTOM);
    has(draw(&c), end);
    has(draw(&c), middle);
    cr_assert_eq(count(draw(&c), "<circle"), 3);
    bytes_close(&svg);
}

/* The last value's distance below its dot. */
static double last_value_below(const char *text)
{
    double dot = NAN, value = NAN;
    for (const char *at = text; (at = strchr(at, '<')); at++) {
        int end = 0;
        double found;
        if (sscanf(at, "<circle cx=\"%*f\" cy=\"%lf\" r=\"3.5\"%n", &found, &end) == 1 && end)
            dot = found;
        if (sscanf(at, "<text x=\"%*f\" y=\"%lf\" text-anchor=\"end\" fill%n", &found, &end) == 1 &&
            end)
            value = found;
    }
    return value - dot;
}

Test(chart, puts_the_last_value_beside_its_line)
{
    static const struct {
        double before, last;
        bool below;
    } cases[] = {{6, 4, true}, {4, 6, false}, {4, 4, false}, {6, 0, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct chart_line line = {.x = (double[]){0, 1, 2, 3},
                                        .y = (double[]){0, 10, cases[i].before, cases[i].last},
                                        .count = 4};
        const struct chart c = {
            .title = "t", .x_label = "x", .y_label = "y", .line = &line, .lines = 1};
        double below = last_value_below(draw(&c));
        cr_expect(cases[i].below ? below > 0 : below < 0, "case %zu: %g", i, below);
        bytes_close(&svg);
    }
}

/* On an axis of powers of ten from 0.01 to 100 the value 1 is in the middle; 0 has no place. */
Test(chart, has_a_logarithmic_axis)
{
    char middle[64];
    const struct chart_line line = {
        .x = (double[]){0, 1, 2, 3}, .y = (double[]){0.01, 1, 100, 0}, .count = 4};
    const struct chart c = {
        .title = "t", .x_label = "x", .y_label = "y", .line = &line, .lines = 1, .log = true};
    const char *text = draw(&c);
    has(text, ">0.01</text>");
    has(text, ">100</text>");
    cr_assert_eq(count(text, "<circle"), 3);
    snprintf(middle, sizeof middle, ",%.2f ", BOTTOM - (BOTTOM - TOP) * 0.5);
    has(text, middle);
    bytes_close(&svg);
}

/* The band covers what has both sides, and is inside the picture. */
Test(chart, draws_bands_and_levels)
{
    const struct chart_line line = {.name = "mean",
                                    .x = (double[]){1, 2, 3},
                                    .y = (double[]){5, 4, 3},
                                    .low = (double[]){4, NAN, 2},
                                    .high = (double[]){6, 5, 4},
                                    .count = 3};
    const struct chart_level level = {"base <model>", 6.5};
    const struct chart c = {.title = "t",
                            .x_label = "x",
                            .y_label = "y",
                            .line = &line,
                            .lines = 1,
                            .level = &level,
                            .levels = 1};
    const char *text = draw(&c), *band = strstr(text, "<polygon");
    cr_assert(band);
    size_t size = strcspn(band, "/");
    size_t corners = 0;
    for (size_t i = 0; i < size; i++)
        corners += band[i] == ',';
    cr_assert_eq(corners, 4);
    has(text, "base &lt;model&gt;");
    has(text, "stroke-dasharray=\"2 4\"");
    bytes_close(&svg);
}

Test(chart, keeps_all_names_of_many_lines)
{
    struct chart_line line[12];
    double x[] = {1, 2}, y[12][2];
    char name[12][40];
    for (int i = 0; i < 12; i++) {
        snprintf(name[i], sizeof name[i], "method=number-%d alpha=0.5", i);
        y[i][0] = 1;
        y[i][1] = i;
        line[i] = (struct chart_line){.name = name[i], .x = x, .y = y[i], .count = 2};
    }
    const struct chart c = {
        .title = "t", .x_label = "x", .y_label = "y", .line = line, .lines = 12};
    const char *text = draw(&c);
    for (int i = 0; i < 12; i++)
        has(text, name[i]);
    has(text, "height=\"560\"");
    cr_assert_eq(count(text, "stroke-dasharray"), 8); /* four lines and their names */
    bytes_close(&svg);
}
