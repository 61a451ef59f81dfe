/* The record of a run names the processor and the libraries on which its bytes depend. */
#include "kernels/describe.h"
#include "base/processor.h"

#include <criterion/criterion.h>
#include <string.h>

Test(describe, names_each_library_with_its_version)
{
    char text[300];
    describe_libraries(text, sizeof text);
    cr_expect(strncmp(text, "oneDNN ", 7) == 0 && strstr(text, ", OpenBLAS ") &&
                  strstr(text, ", glibc 2."),
              "%s", text);
    processor_name(text, sizeof text);
    cr_expect(strlen(text) > 3 && !strchr(text, '\n') && text[0] != ' ', "\"%s\"", text);
}

Test(describe, keeps_to_its_room)
{
    char text[12];
    memset(text, 'x', sizeof text);
    describe_libraries(text, 9);
    cr_expect_eq(strlen(text), 8);
    processor_name(text, 1);
    cr_expect_str_eq(text, "");
    cr_expect_eq(text[10], 'x');
}
