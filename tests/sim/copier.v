// A device with the ports of terrazzo_top that copies BEATS beats from INPUT to OUTPUT, one more in each byte.
// It exercises the harness by itself: its trace reports every accepted beat (matrix: read, vector: write).
// ENTRY 0 ends at once, 1 copies, 2 never ends, 3 copies to 64 KiB behind OUTPUT, 4 fails with cause 3.
module terrazzo_top(
  input clk, input rst,
  input [7:0] s_axil_awaddr, input [2:0] s_axil_awprot, input s_axil_awvalid, output s_axil_awready,
  input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
  output [1:0] s_axil_bresp, output reg s_axil_bvalid, input s_axil_bready,
  input [7:0] s_axil_araddr, input [2:0] s_axil_arprot, input s_axil_arvalid, output s_axil_arready,
  output reg [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output reg s_axil_rvalid, input s_axil_rready,
  output m_axi_awid, output [31:0] m_axi_awaddr, output [7:0] m_axi_awlen, output [2:0] m_axi_awsize,
  output [1:0] m_axi_awburst, output reg m_axi_awvalid, input m_axi_awready,
  output [63:0] m_axi_wdata, output [7:0] m_axi_wstrb, output m_axi_wlast, output reg m_axi_wvalid, input m_axi_wready,
  input m_axi_bid, input [1:0] m_axi_bresp, input m_axi_bvalid, output m_axi_bready,
  output m_axi_arid, output [31:0] m_axi_araddr, output [7:0] m_axi_arlen, output [2:0] m_axi_arsize,
  output [1:0] m_axi_arburst, output reg m_axi_arvalid, input m_axi_arready,
  input m_axi_rid, input [63:0] m_axi_rdata, input [1:0] m_axi_rresp, input m_axi_rlast, input m_axi_rvalid,
  output m_axi_rready,
  output irq,
  output trace_load_start, output [9:0] trace_load_start_tag, output trace_load_done, output [9:0] trace_load_done_tag,
  output trace_matrix_start, output [9:0] trace_matrix_start_tag, output trace_matrix_done,
  output [9:0] trace_matrix_done_tag,
  output trace_vector_start, output [9:0] trace_vector_start_tag, output trace_vector_done,
  output [9:0] trace_vector_done_tag,
  output trace_store_start, output [9:0] trace_store_start_tag, output trace_store_done,
  output [9:0] trace_store_done_tag,
  output reg trace_run_start, output reg trace_run_end
);
  localparam BEATS = 4;
  reg [31:0] regs [0:63];
  reg [63:0] beats [0:BEATS-1];
  reg loaded, busy, interrupt, fault;
  reg [2:0] read, written;
  wire [31:0] status = {28'b0, interrupt, loaded, fault, busy};

  assign s_axil_bresp = 0;
  assign s_axil_rresp = 0;
  assign s_axil_awready = s_axil_awvalid && s_axil_wvalid && !s_axil_bvalid;
  assign s_axil_wready = s_axil_awready;
  assign s_axil_arready = !s_axil_rvalid;
  assign irq = interrupt && regs[8][0];

  assign {m_axi_awid, m_axi_arid} = 0;
  assign m_axi_araddr = regs[18];
  assign m_axi_awaddr = regs[20] + (regs[11] == 3 ? 32'h10000 : 0);
  assign {m_axi_arlen, m_axi_awlen} = {8'd3, 8'd3};
  assign {m_axi_arsize, m_axi_awsize} = {3'd3, 3'd3};
  assign {m_axi_arburst, m_axi_awburst} = {2'd1, 2'd1};
  assign m_axi_rready = 1;
  assign m_axi_bready = 1;
  assign m_axi_wdata = beats[written[1:0]] + 64'h0101010101010101;
  assign m_axi_wstrb = 8'hFF;
  assign m_axi_wlast = written == BEATS - 1;

  assign trace_load_start = m_axi_arvalid && m_axi_arready;
  assign trace_load_done = m_axi_rvalid && m_axi_rlast;
  assign trace_matrix_start = 0;
  assign trace_matrix_done = m_axi_rvalid;
  assign trace_matrix_done_tag = {7'b0, read};
  assign trace_vector_start = 0;
  assign trace_vector_done = m_axi_wvalid && m_axi_wready;
  assign trace_vector_done_tag = {7'b0, written};
  assign trace_store_start = m_axi_awvalid && m_axi_awready;
  assign trace_store_done = m_axi_bvalid;
  assign {trace_load_start_tag, trace_load_done_tag, trace_store_start_tag, trace_store_done_tag} = {4{10'd7}};
  assign {trace_matrix_start_tag, trace_vector_start_tag} = 0;

  always @(posedge clk) begin
    trace_run_start <= 0;
    trace_run_end <= 0;
    if (s_axil_bready) s_axil_bvalid <= 0;
    if (s_axil_rready) s_axil_rvalid <= 0;
    if (s_axil_arvalid && s_axil_arready) begin
      s_axil_rvalid <= 1;
      s_axil_rdata <= s_axil_araddr == 8'h00 ? 32'h5452_5A4F : s_axil_araddr == 8'h14 ? status : s_axil_araddr == 8'h18 ? (fault ? 3 : 0)
                                                                               : regs[s_axil_araddr[7:2]];
    end
    if (s_axil_awready) begin
      s_axil_bvalid <= 1;
      if (s_axil_awaddr != 8'h10) regs[s_axil_awaddr[7:2]] <= s_axil_wdata;
      else begin
        if (s_axil_wdata[0]) begin
          busy <= 1;
          trace_run_start <= 1;
          {read, written} <= 0;
          if (regs[11] == 1 || regs[11] == 3) m_axi_arvalid <= 1;
        end
        if (s_axil_wdata[1]) loaded <= 1;
        if (s_axil_wdata[2]) fault <= 0;
        if (s_axil_wdata[3]) interrupt <= 0;
      end
    end
    if (m_axi_arvalid && m_axi_arready) m_axi_arvalid <= 0;
    if (m_axi_awvalid && m_axi_awready) m_axi_awvalid <= 0;
    if (m_axi_rvalid) begin
      beats[read[1:0]] <= m_axi_rdata;
      read <= read + 1;
      if (m_axi_rlast) {m_axi_awvalid, m_axi_wvalid} <= 2'b11;
    end
    if (m_axi_wvalid && m_axi_wready) begin
      written <= written + 1;
      if (m_axi_wlast) m_axi_wvalid <= 0;
    end
    if (m_axi_bvalid || busy && trace_run_start && regs[11] == 0) begin
      trace_run_end <= 1;
      {busy, interrupt} <= 2'b01;
    end
    if (trace_run_start && regs[11] == 4) begin
      {busy, interrupt, fault} <= 3'b011;
    end
    if (rst) begin
      {loaded, busy, interrupt, fault, m_axi_arvalid, m_axi_awvalid, m_axi_wvalid, s_axil_bvalid, s_axil_rvalid} <= 0;
      {read, written} <= 0;
    end
  end
endmodule
