# Run by every build: writes version_commit() of base/version.h into OUT when the commit of SOURCE has changed.
# COMMIT, if it is not empty, is taken instead, for a build outside of the repository.
if(COMMIT STREQUAL "")
  set(ENV{GIT_OPTIONAL_LOCKS} 0) # looking at the tree must not disturb a git command that runs beside the build
  execute_process(COMMAND git describe --always --exclude=* --abbrev=9 --dirty=.dirty WORKING_DIRECTORY ${SOURCE}
    OUTPUT_VARIABLE COMMIT ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  # A source archive unpacked inside another project's repository would get that project's commit.
  execute_process(COMMAND git rev-parse --show-toplevel WORKING_DIRECTORY ${SOURCE}
    OUTPUT_VARIABLE top ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT COMMIT OR NOT top STREQUAL SOURCE)
    set(COMMIT unknown)
  endif()
endif()
set(text "#include \"base/version.h\"\nconst char *version_commit(void)\n{\n    return \"${COMMIT}\";\n}\n")
set(is "")
if(EXISTS ${OUT})
  file(READ ${OUT} is)
endif()
if(NOT is STREQUAL text)
  file(WRITE ${OUT} "${text}")
endif()
