/* OpenSSL's headers. They have a type called ERR_STATE (the error queue), which is not used here
 * and clashes with base/err.h, so it gets another name. */
#ifndef PROTO_RPC_OPENSSL_H
#define PROTO_RPC_OPENSSL_H

#define ERR_STATE openssl_err_state
#include <openssl/conf.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#undef ERR_STATE

#endif
