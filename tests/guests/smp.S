# The boot processor starts all others with INIT and SIPI. Each of these writes its number (1, 2, ...) in order of arrival;
# when the count at EXPECTED has come, the boot processor writes a mark.
	.include "guest.inc"
	.set LAPIC, 0xfee00000
	.set TRAMPOLINE, 0x8000
	.set ARRIVED, 0x9000
	.set EXPECTED, 0x9004
_start:	leaq ap(%rip), %rsi
	movl $TRAMPOLINE, %edi
	movl $(ap_end - ap), %ecx
	cld
	rep movsb
	movl $LAPIC, %ebx
	movl $0x1ff, 0xf0(%rbx)
	movl $0x000c4500, 0x300(%rbx)	# INIT to all but self
	movl $0x000c4608, 0x300(%rbx)	# SIPI to all but self: page 8
1:	movl ARRIVED, %eax
	cmpl EXPECTED, %eax
	jne 1b
	mark 'E'
2:	hlt
	jmp 2b

	.code16
ap:	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw $1, %ax
	lock xaddw %ax, ARRIVED
	incw %ax
	movw $(SYNC + 8), %dx
	outb %al, %dx
3:	hlt
	jmp 3b
ap_end:
