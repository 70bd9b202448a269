# Takes interrupts at vector 0x40 and counts them. The handler starts the waiting loop over instead of returning.
	.include "guest.inc"
	.set IDT, 0x70000
	.set LAPIC, 0xfee00000
	.set STACK, 0x80000
_start:	lgdt gdtr(%rip)
	leaq handler(%rip), %rax
	movl $(IDT + 0x40 * 16), %edi
	movw %ax, 0(%rdi)
	movw $0x08, 2(%rdi)
	movw $0x8e00, 4(%rdi)		# present, 64-bit interrupt gate
	shrq $16, %rax
	movw %ax, 6(%rdi)
	shrq $16, %rax
	movl %eax, 8(%rdi)
	movl $0, 12(%rdi)
	lidt idtr(%rip)
	movl $LAPIC, %ebx
	movl $0x1ff, 0xf0(%rbx)		# software-enable, spurious vector 0xff
	mark 'R'
wait:	movl $STACK, %esp
	sti
1:	hlt
	jmp 1b
handler:
	incl COUNTER
	mark 'I'
	movl $0, 0xb0(%rbx)		# end of interrupt
	jmp wait

	.balign 8
gdt:	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:	.word . - gdt - 1
	.quad gdt
idtr:	.word 0xfff
	.quad IDT
