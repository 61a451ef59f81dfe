#include "kernels/describe.h"

#include <cblas.h>
#include <gnu/libc-version.h>
#include <oneapi/dnnl/dnnl.h>
#include <oneapi/dnnl/dnnl_debug.h>
#include <stdio.h>
#include <string.h>

/* Version and kernel of OpenBLAS: the first two words of its configuration ("OpenBLAS 0.3.21
 * NO_AFFINITY ...") and the core name. */
static void name_openblas(char *out, size_t bytes)
{
    const char *config = openblas_get_config();
    const char *first = strchr(config, ' '), *second = first ? strchr(first + 1, ' ') : NULL;
    int size = second ? (int)(second - config) : (int)strlen(config);
    snprintf(out, bytes, "%.*s %s", size, config, openblas_get_corename());
}

void describe_libraries(char *out, size_t bytes)
{
    const dnnl_version_t *v = dnnl_version();
    const char *isa = dnnl_cpu_isa2str(dnnl_get_effective_cpu_isa());
    char openblas[128];
    name_openblas(openblas, sizeof openblas);
    if (strncmp(isa, "cpu_isa_", 8) == 0) isa += 8;
    snprintf(out, bytes, "oneDNN %d.%d.%d %s, %s, glibc %s", v->major, v->minor, v->patch, isa,
             openblas, gnu_get_libc_version());
}
