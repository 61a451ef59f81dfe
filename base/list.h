/* Lists on the heap that grow. */
#ifndef BASE_LIST_H
#define BASE_LIST_H

#include "base/err.h"

#include <stddef.h>

/* Makes room for `need` elements of `size` bytes in a list, which starts as NULL with capacity 0,
 * by doubling, so that appending n elements one by one takes O(n) time. ERR_MACHINE without memory;
 * the list is then unchanged. */
err list_grow(void *list /* T ** */, size_t *capacity, size_t need, size_t size);

#endif
