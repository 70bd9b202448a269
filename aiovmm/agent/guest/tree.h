/* A file or a directory with all below it as a stream, in and out: docs/agent.md, and aiovmm/agent/tree.py, which has the same.
 *
 * A record: u8 type, u8 zero, u16 size of the name, u32 mode, u64 mtime in ns; the name, which is that of an entry of the directory
 * one is in, and never a path. Behind a file its content, in pieces of u32 size and bytes, then u32 zero and u32 errno; behind a link
 * u16 size and its target.
 */
#ifndef TREE_H
#define TREE_H

enum { HEADER = 16, DEPTH_MAX = 128, PIECE = 64 << 10, LARGE = 512 << 10, NAME_MAX_ = 255, TARGET_MAX = 4095 };
enum { DIRECTORY = 'D', UP = 'U', FILE_ = 'F', LINK = 'L', LEFT_OUT = 'X', END = 'E' };

#endif
