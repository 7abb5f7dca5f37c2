// Behaviour of the DSP48E1 slice of 7 series devices, as far as Terrazzo uses it, for simulators and
// proofs without the vendor's libraries. Source: AMD UG479, chapter 2. Clock enables are taken as 1 and resets as 0;
// ALUMODE as 0000 (Z + X + Y + CIN); control inputs have no registers; A and B come from their ports.
module DSP48E1 #(
  parameter integer ACASCREG = 1, ADREG = 1, ALUMODEREG = 1, AREG = 1, BCASCREG = 1, BREG = 1, CARRYINREG = 1,
  parameter integer CARRYINSELREG = 1, CREG = 1, DREG = 1, INMODEREG = 1, MREG = 1, OPMODEREG = 1, PREG = 1,
  parameter USE_DPORT = "FALSE", USE_MULT = "MULTIPLY", USE_SIMD = "ONE48"
) (
  input CLK,
  input [29:0] A, ACIN,
  input [17:0] B, BCIN,
  input [47:0] C, PCIN,
  input [24:0] D,
  input [6:0] OPMODE,
  input [4:0] INMODE,
  input [3:0] ALUMODE,
  input [2:0] CARRYINSEL,
  input CARRYIN, CARRYCASCIN, MULTSIGNIN,
  input CEA1, CEA2, CEAD, CEALUMODE, CEB1, CEB2, CEC, CECARRYIN, CECTRL, CED, CEINMODE, CEM, CEP,
  input RSTA, RSTALLCARRYIN, RSTALUMODE, RSTB, RSTC, RSTCTRL, RSTD, RSTINMODE, RSTM, RSTP,
  output [47:0] P, PCOUT
);
  // Input registers: the last of AREG, BREG, DREG and CREG stages.
  reg [29:0] a1, a2;
  reg [17:0] b1, b2;
  reg [24:0] d1, ad1;
  reg [47:0] c1;
  always @(posedge CLK) begin
    a1 <= A;
    a2 <= a1;
    b1 <= B;
    b2 <= b1;
    d1 <= D;
    c1 <= C;
  end
  wire [29:0] a = AREG == 0 ? A : AREG == 1 ? a1 : a2;
  wire [17:0] b = BREG == 0 ? B : BREG == 1 ? b1 : b2;
  wire [24:0] d = DREG == 0 ? D : d1;
  wire [47:0] c = CREG == 0 ? C : c1;

  // Pre-adder: INMODE[1] zeroes A, INMODE[2] lets D in, INMODE[3] subtracts A.
  wire [24:0] pre_a = INMODE[1] ? 25'd0 : a[24:0];
  wire [24:0] pre_d = INMODE[2] ? d : 25'd0;
  wire [24:0] sum = INMODE[3] ? pre_d - pre_a : pre_d + pre_a;
  always @(posedge CLK) ad1 <= sum;
  wire signed [24:0] multiplicand = USE_DPORT == "TRUE" ? (ADREG == 0 ? sum : ad1) : a[24:0];
  wire signed [17:0] multiplier = b;

  wire signed [42:0] product = multiplicand * multiplier;
  reg signed [42:0] m1;
  always @(posedge CLK) m1 <= product;
  wire signed [42:0] m = MREG == 0 ? product : m1;

  // The product is the sum of X and Y where OPMODE[3:0] is 0101.
  wire [47:0] xy = OPMODE[3:0] == 4'b0101 ? {{5{m[42]}}, m}
                 : OPMODE[3:0] == 4'b1100 ? c
                 : OPMODE[3:0] == 4'b0011 ? {a, b} : 48'd0;
  wire [47:0] z = OPMODE[6:4] == 3'b001 ? PCIN : OPMODE[6:4] == 3'b010 ? P : OPMODE[6:4] == 3'b011 ? c : 48'd0;
  wire [47:0] alu = z + xy + {47'd0, CARRYIN};
  reg [47:0] p1;
  always @(posedge CLK) p1 <= alu;
  assign P = PREG == 0 ? alu : p1;
  assign PCOUT = P;
endmodule
