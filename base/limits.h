/* Every maximum, in one place. Beyond it the answer is ERR_LIMIT (ERR_INPUT for a file that claims
 * more), never growth. Code and documents rely on these numbers: change them together. */
#ifndef BASE_LIMITS_H
#define BASE_LIMITS_H

#define LIMIT_NAME_BYTES 128        /* a member, run or method name, with its zero */
#define LIMIT_TENSOR_NAME_BYTES 256 /* a tensor or module name, with its zero */
#define LIMIT_PATH_BYTES 4096
#define LIMIT_COMMANDS 128                  /* of one program */
#define LIMIT_TENSORS 65536                 /* tensors in one file */
#define LIMIT_SAFETENSORS_HEADER 100000000u /* bytes; the maximum of the reference reader */
#define LIMIT_JSON_BYTES (256u << 20)       /* tokenizer.json of a large vocabulary is tens of MB */
#define LIMIT_GGUF_KV 65536
#define LIMIT_GGUF_FILES 1024 /* of a split model */
#define LIMIT_LAYERS 512
#define LIMIT_MODULES (LIMIT_LAYERS * 7)
#define LIMIT_RANK 4096
#define LIMIT_VOCAB (1u << 20)
#define LIMIT_SEQUENCE (1u << 17)         /* tokens of one row */
#define LIMIT_DIMENSION (1u << 20)        /* any side of a weight */
#define LIMIT_HEAD_DIM 1024               /* values of one head of attention */
#define LIMIT_LINE_BYTES (16u << 20)      /* one line of a data file */
#define LIMIT_UNPACKED_BYTES (1ull << 36) /* a data file out of gzip */
#define LIMIT_JSON_DEPTH 4096             /* nested lists and objects in a value that is skipped */
#define LIMIT_TEXT_BYTES (1u << 30)       /* one text given to a tokenizer */
#define LIMIT_ROWS (1u << 26)
#define LIMIT_MEMBERS 10000        /* that take part in a round, or that a service lists */
#define LIMIT_POPULATION 100000    /* members of a run; more than LIMIT_MEMBERS need a cohort */
#define LIMIT_ROBUST_MEMBERS 2048  /* in a round whose robust rule compares all pairs */
#define LIMIT_SESSION_BYTES 16     /* by which the machine of a member names itself */
#define LIMIT_TOKENS LIMIT_MEMBERS /* open ones, for enrolment */
#define LIMIT_RUNS 1024            /* that are open; runs that are over do not count */
#define LIMIT_ROUNDS 100000
#define LIMIT_BACKUP_FILES (1u << 20) /* whose list fits into LIMIT_JSON_BYTES */
#define LIMIT_BLOB_BYTES (16ull << 30)
#define LIMIT_CHUNK_BYTES (1u << 20) /* one streamed chunk */
#define LIMIT_THREADS 256
#define LIMIT_PLD_CELLS (1u << 22) /* points of an accountant's grid of privacy losses */
#define LIMIT_PRV_CELLS (1u << 24)
#define LIMIT_ACCOUNT_STEPS 1000000000ull /* releases of one kind */

/* A chat template and one rendering of it. */
#define LIMIT_TEMPLATE_BYTES (1u << 20)    /* a chat template */
#define LIMIT_TEMPLATE_DEPTH 100           /* nesting of its brackets, statements and macro calls */
#define LIMIT_TEMPLATE_NAMES 4096          /* variables and members in it */
#define LIMIT_TEMPLATE_STEPS 100000000u    /* of its program for one conversation: seconds */
#define LIMIT_TEMPLATE_MEMORY (256u << 20) /* bytes of its values */

#endif
