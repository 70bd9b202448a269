# A kernel entered by PVH: prints its command line and powers off.
	.set COM1, 0x3f8
	.set ACPI, 0x600
	.code32
	.globl _start
_start:	movl 24(%ebx), %esi		# hvm_start_info.cmdline_paddr
	movw $COM1, %dx
	cld
1:	lodsb
	testb %al, %al
	jz 2f
	outb %al, %dx
	jmp 1b
2:	movw $ACPI, %dx
	movb $0x34, %al
	outb %al, %dx
3:	hlt
	jmp 3b

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, 18			# XEN_ELFNOTE_PHYS32_ENTRY
	.asciz "Xen"
	.long _start
