/* Text from elsewhere inside HTML and Prometheus labels. Control characters become '?', and so do
 * all bytes above 127 of a text that is not UTF-8. Pure. */
#ifndef COORDINATOR_ESCAPE_H
#define COORDINATOR_ESCAPE_H

#include "base/bytes.h"

/* For HTML, inside an element or a quoted attribute. */
err escape_html(struct bytes *out, const char *text);
/* The value of a Prometheus label, without its quotes. */
err escape_label(struct bytes *out, const char *text);

#endif
