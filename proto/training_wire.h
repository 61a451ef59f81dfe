/* Message Training of fedlora.proto from and to struct training_options. Fields are found by their
 * names in the generated descriptor, so no second list of options exists here. */
#ifndef PROTO_TRAINING_WIRE_H
#define PROTO_TRAINING_WIRE_H

#include "base/training_options.h"

#include "fedlora.pb-c.h"

/* *out holds the defaults before the call. proto3 cannot tell an absent field from zero, so a field
 * that is 0 or "" keeps the default; the exceptions are clip (0: off) and epochs (0: steps count).
 * ERR_INPUT names the field: a value out of range, or neither steps nor epochs. */
err training_wire_read(struct training_options *out, const Fedlora__V1__Training *from);
/* A new message, to be freed with message_free(). ERR_INPUT if a value is 0 and the receiver would
 * replace it by another default. lr 0 is sent, because it asks for the default. */
err training_wire_make(Fedlora__V1__Training **out, const struct training_options *from);

#endif
